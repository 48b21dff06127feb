/* 100 threads: tids, thread-local storage, names, mutexes of every kind, condition variables, read-write locks,
 * barriers, semaphores and robust futexes held across the checkpoint. */
#include "check.h"
#include <semaphore.h>

#define N 100

static pthread_mutex_t normal = PTHREAD_MUTEX_INITIALIZER, recursive, checking, inherit, robust[10];
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t opened = PTHREAD_COND_INITIALIZER;
static pthread_rwlock_t rw = PTHREAD_RWLOCK_INITIALIZER;
static pthread_barrier_t barrier;
static sem_t semaphore;
static int is_open;
static atomic_int waiting, held, passed, finish, in_turn, died;
static long counter;
static pid_t tids[N];
static pthread_t handles[N];
static uintptr_t stacks[N];
static __thread long own;
static __thread char own_zero[64];

static void make(pthread_mutex_t *m, int type, int robustness, int protocol)
{
    pthread_mutexattr_t a;
    pthread_mutexattr_init(&a);
    MUST(pthread_mutexattr_settype(&a, type) == 0);
    MUST(pthread_mutexattr_setrobust(&a, robustness) == 0);
    MUST(pthread_mutexattr_setprotocol(&a, protocol) == 0);
    MUST(pthread_mutex_init(m, &a) == 0);
}

/* Now and then: threads that never rest would starve whoever else is to be tested on this machine. */
static void rest(void)
{
    struct timespec t = {0, 10000000};
    nanosleep(&t, NULL);
}

static void *work(void *arg)
{
    long i = (long)arg;
    int here;
    char name[16], back[16];
    own = i * 1000003;
    tids[i] = gettid();
    stacks[i] = (uintptr_t)&here;
    snprintf(name, sizeof name, "worker %ld", i);
    pthread_setname_np(pthread_self(), name);
    if (i < 10) {
        MUST(pthread_mutex_lock(&robust[i]) == 0);
        held++;
    } else if (i == 10) {
        MUST(pthread_mutex_lock(&recursive) == 0 && pthread_mutex_lock(&recursive) == 0);
        MUST(pthread_mutex_lock(&checking) == 0);
        MUST(pthread_mutex_lock(&inherit) == 0);
        MUST(pthread_rwlock_wrlock(&rw) == 0);
        held++;
    } else if (i < 20) {
        waiting++;
        MUST(pthread_mutex_lock(&normal) == 0); /* main holds it: futex wait */
        counter++;
        pthread_mutex_unlock(&normal);
    } else if (i < 60) {
        MUST(pthread_mutex_lock(&gate) == 0);
        waiting++;
        while (!is_open)
            pthread_cond_wait(&opened, &gate);
        passed++;
        pthread_mutex_unlock(&gate);
    } else if (i < 70) {
        waiting++;
        MUST(pthread_rwlock_rdlock(&rw) == 0);
        passed++;
        pthread_rwlock_unlock(&rw);
    } else if (i < 80) {
        waiting++;
        while (sem_wait(&semaphore))
            FAIL("sem_wait");
        passed++;
    } else if (i < 90) {
        waiting++;
        pthread_barrier_wait(&barrier);
        passed++;
    } else if (i < 95) { /* busy, for long stretches not in the kernel */
        held++;
        volatile unsigned long x = 0;
        while (!finish) {
            for (int k = 0; k < 200000 && !finish; k++)
                x = x * 3 + 1;
            rest();
        }
    } else { /* contending */
        held++;
        for (int round = 1; !finish; round++) {
            pthread_mutex_lock(&gate);
            long seen = in_turn++;
            CHECK(in_turn == seen + 1, "two threads held one mutex");
            pthread_mutex_unlock(&gate);
            if (round % 200)
                sched_yield();
            else
                rest();
        }
    }
    while (!finish)
        rest();
    if (WRONG(1) && i == 33)
        own++;
    if (WRONG(2) && i == 34)
        tids[i]++;
    SAME(own, i * 1000003, "thread-local variable");
    ZEROS(own_zero, sizeof own_zero, "thread-local zeros");
    SAME(gettid(), tids[i], "tid");
    SAME(syscall(SYS_gettid), tids[i], "tid of the kernel");
    CHECK(stacks[i] == (uintptr_t)&here, "stack moved");
    CHECK(pthread_equal(pthread_self(), handles[i]), "pthread_self");
    pthread_getname_np(pthread_self(), back, sizeof back);
    CHECK(strcmp(name, back) == 0, "thread name %s, was %s", back, name);
    if (i == 10) {
        CHECK(pthread_mutex_unlock(&recursive) == 0 && pthread_mutex_unlock(&recursive) == 0, "recursive mutex");
        CHECK(pthread_mutex_unlock(&recursive) == EPERM, "recursive mutex was held more than twice");
        CHECK(pthread_mutex_lock(&checking) == EDEADLK, "error-checking mutex was not held by this thread");
        CHECK(pthread_mutex_unlock(&checking) == 0, "error-checking mutex");
        CHECK(pthread_mutex_unlock(&inherit) == 0, "priority-inheriting mutex");
        CHECK(pthread_rwlock_unlock(&rw) == 0, "read-write lock");
    }
    if (i < 10) {
        died++;
        if (i % 2 == 0)
            CHECK(pthread_mutex_unlock(&robust[i]) == 0, "robust mutex");
        /* odd ones end holding it: the kernel walks the robust list and sets FUTEX_OWNER_DIED */
    }
    return (void *)(i + 7);
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    make(&recursive, PTHREAD_MUTEX_RECURSIVE, PTHREAD_MUTEX_STALLED, PTHREAD_PRIO_NONE);
    make(&checking, PTHREAD_MUTEX_ERRORCHECK, PTHREAD_MUTEX_STALLED, PTHREAD_PRIO_NONE);
    make(&inherit, PTHREAD_MUTEX_NORMAL, PTHREAD_MUTEX_STALLED, PTHREAD_PRIO_INHERIT);
    for (int i = 0; i < 10; i++)
        make(&robust[i], PTHREAD_MUTEX_NORMAL, PTHREAD_MUTEX_ROBUST, PTHREAD_PRIO_NONE);
    MUST(pthread_barrier_init(&barrier, NULL, 11) == 0 && sem_init(&semaphore, 0, 0) == 0);
    MUST(pthread_mutex_lock(&normal) == 0);
    for (long i = 0; i < N; i++) {
        MUST(pthread_create(&handles[i], NULL, work, (void *)i) == 0);
        if (i == 10)
            UNTIL(held == 11, 10, "the holders to hold");
    }
    UNTIL(waiting == 9 + 40 + 10 + 10 + 10 && held == 11 + 10, 20, "threads to wait");
    usleep(20000); /* no verdict hangs on it: only so that most of them are really asleep */
    ready();
    wait_go();
    SAME(passed, 0, "threads that came through before they were let through");
    SAME(counter, 0, "threads that got a mutex that main holds");
    finish = 0;
    pthread_mutex_lock(&gate);
    is_open = 1;
    pthread_cond_broadcast(&opened);
    pthread_mutex_unlock(&gate);
    UNTIL(passed == 40, 10, "condition variable: all woken");
    pthread_mutex_unlock(&normal);
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < 10; i++)
        sem_post(&semaphore);
    UNTIL(passed == 60, 10, "barrier and semaphore: all woken");
    finish = 1;
    for (long i = 0; i < N; i++) {
        void *got;
        struct timespec end;
        clock_gettime(CLOCK_REALTIME, &end);
        end.tv_sec += 20;
        CHECK(pthread_timedjoin_np(handles[i], &got, &end) == 0, "thread %ld does not end", i);
        SAME((long)got, i + 7, "what a thread returned");
    }
    SAME(passed, 70, "threads that came through");
    SAME(counter, 9, "threads that got the mutex");
    for (int i = 0; i < 10; i++) {
        int want = i % 2 ? EOWNERDEAD : 0;
        if (WRONG(3) && i == 5)
            want = 0;
        SAME(pthread_mutex_lock(&robust[i]), want, "robust mutex of a thread that ended");
    }
    ok();
}
