/* OpenMP: parallel loops, reductions, tasks and barriers until told to stop; each round's sum is known. */
#include "check.h"
#include <omp.h>

static long tree(int depth)
{
    if (depth == 0)
        return 1;
    long a, b;
#pragma omp task shared(a)
    a = tree(depth - 1);
#pragma omp task shared(b)
    b = tree(depth - 1);
#pragma omp taskwait
    return a + b;
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    omp_set_num_threads(4);
    long rounds = 0, after = -1;
    static double data[200000];
    while (after < 20) {
        double sum = 0;
        long leaves = 0;
#pragma omp parallel for schedule(dynamic, 1000)
        for (int i = 0; i < 200000; i++)
            data[i] = i % 1000 + rounds % 7;
#pragma omp parallel for reduction(+ : sum)
        for (int i = 0; i < 200000; i++)
            sum += data[i];
        CHECK(sum == 99900000.0 + 200000.0 * (rounds % 7) + WRONG(1), "sum %f in round %ld", sum, rounds);
#pragma omp parallel
#pragma omp single
        {
            SAME(omp_get_num_threads(), 4, "threads");
            leaves = tree(8);
        }
        SAME(leaves, 256, "leaves of a tree of tasks");
        if (++rounds == 5)
            ready();
        if (after >= 0)
            after++;
        else if (rounds > 5 && told())
            after = 0;
    }
    ok();
}
