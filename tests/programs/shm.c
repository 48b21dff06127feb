/* POSIX shared memory and named semaphores: contents that were changed through mappings, also of names whose descriptors
 * are closed, and waiting on a semaphore. Their files are gone at the end: a restart has to bring them back. */
#include "check.h"
#include <semaphore.h>

#define SIZE (64 * 4096)
static char closed_name[100], open_name[100], sem_name[100];

static void clean(void)
{
    shm_unlink(closed_name);
    shm_unlink(open_name);
    sem_unlink(sem_name);
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    at_failure = clean;
    long stamp = time(NULL);
    snprintf(closed_name, sizeof closed_name, "/torpor-test.%d.%ld.c", (int)getpid(), stamp);
    snprintf(open_name, sizeof open_name, "/torpor-test.%d.%ld.o", (int)getpid(), stamp);
    snprintf(sem_name, sizeof sem_name, "/torpor-test.%d.%ld.s", (int)getpid(), stamp);
    int fd = shm_open(closed_name, O_RDWR | O_CREAT | O_EXCL, 0640);
    MUST(fd >= 0 && ftruncate(fd, SIZE) == 0);
    char *a = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    MUST(a != MAP_FAILED && close(fd) == 0);
    fill(a, SIZE / 2, 1);
    fd = shm_open(open_name, O_RDWR | O_CREAT | O_EXCL, 0600);
    MUST(fd >= 0 && ftruncate(fd, SIZE) == 0);
    char *b = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    MUST(b != MAP_FAILED);
    fill(b, SIZE, 2);
    sem_t *sem = sem_open(sem_name, O_CREAT | O_EXCL, 0600, 3);
    MUST(sem != SEM_FAILED && sem_wait(sem) == 0 && sem_wait(sem) == 0 && sem_wait(sem) == 0);
    pid_t child = fork();
    MUST(child >= 0);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        while (sem_wait(sem) != 0)
            MUST(errno == EINTR);
        *(volatile int *)(a + SIZE / 2) = 4711;
        _exit(0);
    }
    ready();
    /* What is written after the checkpoint must be gone after a restart; the first run says when it may begin. */
    wait_go();
    if (WRONG(1))
        a[100] ^= 1;
    if (WRONG(2))
        b[SIZE - 100] ^= 1;
    if (WRONG(3))
        MUST(sem_post(sem) == 0 && sem_post(sem) == 0); /* one is taken by the child at once */
    VERIFY(a, SIZE / 2, 1, "shared memory whose descriptor is closed");
    ZEROS(a + SIZE / 2 + 64, SIZE / 2 - 64, "zeros in shared memory");
    VERIFY(b, SIZE, 2, "shared memory that is open");
    int again = shm_open(closed_name, O_RDWR, 0);
    CHECK(again >= 0, "the name is gone");
    struct stat st;
    MUST(fstat(again, &st) == 0);
    SAME(st.st_size, SIZE, "size");
    SAME(st.st_mode & 0777, 0640, "mode");
    char *c = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, again, 0);
    MUST(c != MAP_FAILED);
    a[0] ^= 1;
    CHECK(c[0] == a[0], "the name leads to other memory");
    MUST(fstat(fd, &st) == 0);
    again = shm_open(open_name, O_RDWR, 0);
    CHECK(again >= 0, "the name is gone");
    struct stat other;
    MUST(fstat(again, &other) == 0);
    SAME(other.st_ino, st.st_ino, "the open file is another one");
    int value;
    sem_t *same = sem_open(sem_name, 0);
    CHECK(same != SEM_FAILED && sem_getvalue(same, &value) == 0, "the semaphore's name is gone");
    SAME(value, 0, "value of the semaphore");
    MUST(sem_post(same) == 0);
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
    SAME(*(volatile int *)(a + SIZE / 2), 4711, "the child's memory is another one");
    for (int i = 0; i < SIZE; i += 4096) /* a restart must not find the old contents by chance */
        a[i] = b[i] = 99;
    clean();
    ok();
}
