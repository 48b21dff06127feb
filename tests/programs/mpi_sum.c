/* Ranks on several hosts: each says where it is, passes a token round a ring and takes part in sums.
 *
 *     mpi_sum ROUNDS
 *
 * The first one prints READY after some rounds, and at the end the number of ranks, of hosts, and OK. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fail(const char *what) {
    fprintf(stderr, "FAIL: %s\n", what);
    MPI_Abort(MPI_COMM_WORLD, 1);
}

int main(int argc, char **argv) {
    int rank, size, length, hosts = 0;
    long rounds = argc > 1 ? atol(argv[1]) : 100;
    char name[MPI_MAX_PROCESSOR_NAME] = "";
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Get_processor_name(name, &length);
    char *names = malloc((size_t)size * sizeof name);
    MPI_Allgather(name, sizeof name, MPI_CHAR, names, sizeof name, MPI_CHAR, MPI_COMM_WORLD);
    for (int i = 0; i < size; i++) {
        int seen = 0;
        for (int j = 0; j < i; j++) seen |= !strcmp(names + i * sizeof name, names + j * sizeof name);
        hosts += !seen;
    }
    for (long round = 0; round < rounds; round++) {
        long mine = round * size + rank, sum, token = round;
        MPI_Allreduce(&mine, &sum, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
        if (rank == 0 && round == 100) {
            printf("READY\n");
            fflush(stdout);
        }
        if (sum != round * size * size + (long)size * (size - 1) / 2) fail("a sum is wrong");
        if (rank == 0) {
            MPI_Send(&token, 1, MPI_LONG, 1 % size, 0, MPI_COMM_WORLD);
            MPI_Recv(&token, 1, MPI_LONG, size - 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            if (token != round + size - 1) fail("the token is wrong");
        } else {
            MPI_Recv(&token, 1, MPI_LONG, rank - 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            token++;
            MPI_Send(&token, 1, MPI_LONG, (rank + 1) % size, 0, MPI_COMM_WORLD);
        }
    }
    if (rank == 0) printf("%d ranks on %d hosts\nOK\n", size, hosts);
    free(names);
    MPI_Finalize();
    return 0;
}
