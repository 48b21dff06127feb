/* Heat in a ring, cut into pieces: neighbours exchange their borders at every step, all add up at every tenth. The result
   is printed to the last bit. mpi_heat STEPS [leave]: with `leave` it ends without MPI_Finalize, in which Debian 12's
   MPICH (4.0.2 with UCX 1.13) hangs in most runs, also where nothing else is around: ranks wait in a PMI barrier, where
   they make no progress, for ranks that wait for them to answer the closing of their connections. The launcher is told the end itself. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CELLS 20000

int main(int argc, char **argv)
{
    MPI_Init(&argc, &argv);
    int rank, size, steps = argc > 1 ? atoi(argv[1]) : 1000;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    int left = (rank + size - 1) % size, right = (rank + 1) % size;
    double *now = calloc(CELLS + 2, sizeof *now), *next = calloc(CELLS + 2, sizeof *next), sum = 0;
    for (int i = 1; i <= CELLS; i++)
        now[i] = ((rank * CELLS + i) * 2654435761u % 1000) / 7.0;
    for (int step = 1; step <= steps; step++) {
        MPI_Sendrecv(now + 1, 1, MPI_DOUBLE, left, 1, now + CELLS + 1, 1, MPI_DOUBLE, right, 1, MPI_COMM_WORLD,
                     MPI_STATUS_IGNORE);
        MPI_Sendrecv(now + CELLS, 1, MPI_DOUBLE, right, 2, now, 1, MPI_DOUBLE, left, 2, MPI_COMM_WORLD,
                     MPI_STATUS_IGNORE);
        double mine = 0;
        for (int i = 1; i <= CELLS; i++) {
            next[i] = now[i] + 0.2 * (now[i - 1] - 2 * now[i] + now[i + 1]);
            mine += next[i] * next[i];
        }
        double *swap = now;
        now = next;
        next = swap;
        if (step % 10 == 0)
            MPI_Allreduce(&mine, &sum, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
        if (rank == 0 && step % 100 == 0) {
            unsigned long long bits;
            memcpy(&bits, &sum, sizeof bits);
            printf("step %d %016llx\n", step, bits);
            fflush(stdout);
        }
    }
    if (argc > 2) {
        const char *launcher = getenv("PMI_FD");
        char answer[100];
        MPI_Barrier(MPI_COMM_WORLD);
        if (!launcher || dprintf(atoi(launcher), "cmd=finalize\n") < 0 || read(atoi(launcher), answer, 100) <= 0)
            _exit(3);
        _exit(0);
    }
    MPI_Finalize();
    return 0;
}
