/* System V shared memory, semaphores and message queues: numbers, keys, owners, contents, undo, last pids.
 *
 * Everything is found again by number and by key. Objects are removed at the end, so a checkpoint cannot be restarted
 * where they still are in use; it can, since a restarted job has an IPC namespace of its own. */
#include "check.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

#define SIZE (300 * 4096 + 100)
union semun {
    int val;
    struct semid_ds *buf;
    unsigned short *array;
};
struct message {
    long type;
    char text[4000];
};
static int whole = -1, loose = -1, doomed = -1, locked = -1, sems = -1, queue = -1, empty = -1;
static pid_t child;

static void clean(void)
{
    shmctl(whole, IPC_RMID, NULL);
    shmctl(loose, IPC_RMID, NULL);
    shmctl(doomed, IPC_RMID, NULL);
    shmctl(locked, IPC_RMID, NULL);
    semctl(sems, 0, IPC_RMID);
    msgctl(queue, IPC_RMID, NULL);
    msgctl(empty, IPC_RMID, NULL);
    if (child > 0)
        kill(child, SIGKILL);
}

static void op(int n, int by, int flags)
{
    struct sembuf b = {n, by, flags};
    MUST(semop(sems, &b, 1) == 0);
}

static void perm(struct ipc_perm *p, key_t key, int mode, const char *what)
{
    SAME(p->__key, key, what);
    SAME(p->mode & 0777, mode, what);
    SAME(p->uid, geteuid(), what);
    SAME(p->cuid, geteuid(), what);
    SAME(p->gid, getegid(), what);
}

static int writable(void *at)
{
    char line[512], perms[8];
    unsigned long start, end;
    int found = -1;
    FILE *f = fopen("/proc/self/maps", "re");
    MUST(f);
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "%lx-%lx %7s", &start, &end, perms) == 3 && start <= (unsigned long)at && (unsigned long)at < end)
            found = perms[1] == 'w';
    fclose(f);
    return found;
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    at_failure = clean;
    key_t key = 0x70000000 | (getpid() << 4 & 0xffffff0) ;
    /* A segment that two processes have attached, also read-only and partly. */
    whole = shmget(key, SIZE, IPC_CREAT | IPC_EXCL | 0640);
    MUST(whole >= 0);
    char *a = shmat(whole, NULL, 0);
    MUST(a != (void *)-1);
    fill(a, SIZE, 1);
    memset(a + 100 * 4096, 0, 50 * 4096);
    char *ro = shmat(whole, NULL, SHM_RDONLY);
    MUST(ro != (void *)-1);
    char *part = shmat(whole, (void *)0x100000000000, 0); /* where nothing else will be mapped */
    MUST(part != (void *)-1);
    MUST(munmap(part, 10 * 4096) == 0 && munmap(part + 20 * 4096, SIZE - 20 * 4096) == 0);
    char *guarded = shmat(whole, NULL, 0);
    MUST(guarded != (void *)-1 && mprotect(guarded + 4096, 4096, PROT_READ) == 0);
    /* Nobody has it attached. */
    loose = shmget(key + 1, 3 << 20, IPC_CREAT | IPC_EXCL | 0600);
    MUST(loose >= 0);
    char *l = shmat(loose, NULL, 0);
    MUST(l != (void *)-1);
    fill(l + (1 << 20), 1 << 20, 2);
    MUST(shmdt(l) == 0);
    /* Removed while attached; its key is another's now. */
    doomed = shmget(key + 2, 8192, IPC_CREAT | IPC_EXCL | 0600);
    MUST(doomed >= 0);
    char *d = shmat(doomed, NULL, 0);
    MUST(d != (void *)-1 && shmctl(doomed, IPC_RMID, NULL) == 0);
    fill(d, 8192, 3);
    locked = shmget(key + 2, 4096, IPC_CREAT | IPC_EXCL | 0606);
    MUST(locked >= 0);
    struct rlimit limit;
    getrlimit(RLIMIT_MEMLOCK, &limit);
    int lock = limit.rlim_cur >= 4096 && shmctl(locked, SHM_LOCK, NULL) == 0;
    MUST(shmctl(shmget(IPC_PRIVATE, 4096, 0600), IPC_RMID, NULL) == 0); /* a gap in the numbers */

    sems = semget(key, 6, IPC_CREAT | IPC_EXCL | 0620);
    MUST(sems >= 0);
    MUST(semctl(sems, 1, SETVAL, (union semun){.val = 7}) == 0);
    MUST(semctl(sems, 2, SETVAL, (union semun){.val = 32767}) == 0);
    MUST(semctl(sems, 4, SETVAL, (union semun){.val = 20000}) == 0);
    op(1, -3, SEM_UNDO);
    op(3, 5, SEM_UNDO);
    op(4, -19990, SEM_UNDO); /* an adjustment of 19990, value 10 */
    op(5, 1, 0);

    queue = msgget(key, IPC_CREAT | IPC_EXCL | 0600);
    empty = msgget(IPC_PRIVATE, IPC_CREAT | 0600);
    MUST(queue >= 0 && empty >= 0);
    struct msqid_ds q;
    MUST(msgctl(queue, IPC_STAT, &q) == 0);
    q.msg_qbytes = 9000;
    MUST(msgctl(queue, IPC_SET, &q) == 0);
    static struct message m;
    for (int i = 0; i < 7; i++) {
        m.type = 7 - i;
        fill(m.text, 1000, 10 + i);
        MUST(msgsnd(queue, &m, i * 100, 0) == 0);
    }
    m.type = 99;
    MUST(msgsnd(queue, &m, 1, 0) == 0);
    MUST(msgrcv(queue, &m, 4000, 99, 0) == 1);

    int up[2], down[2];
    MUST(pipe(up) == 0 && pipe(down) == 0);
    child = fork();
    MUST(child >= 0);
    if (child == 0) {
        /* Its end gives back what it took: 2 of semaphore 2, and takes what it gave: 4 of semaphore 0. */
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        op(2, -2, SEM_UNDO);
        op(0, 4, SEM_UNDO);
        op(0, 1, 0);
        char *mine = shmat(loose, NULL, SHM_RDONLY);
        MUST(mine != (void *)-1 && shmdt(mine) == 0);
        m.type = 1000;
        MUST(msgsnd(queue, &m, 3, 0) == 0);
        MUST(write(up[1], "c", 1) == 1);
        char c;
        MUST(read(down[0], &c, 1) == 1);
        VERIFY(a, 100 * 4096, 1, "shared memory in the child");
        *(volatile int *)a = 4711;
        _exit(0);
    }
    char c;
    MUST(read(up[0], &c, 1) == 1);
    op(4, 1, 0);

    ready();
    wait_go();
    if (WRONG(1))
        a[200 * 4096] ^= 1;
    if (WRONG(2))
        op(1, 1, 0);
    if (WRONG(3))
        MUST(msgrcv(queue, &m, 4000, 3, MSG_NOERROR) >= 0);
    if (WRONG(4))
        op(4, 1, SEM_UNDO);

    struct shmid_ds s;
    SAME(shmget(key, 0, 0), whole, "number of the segment");
    MUST(shmctl(whole, IPC_STAT, &s) == 0);
    perm(&s.shm_perm, key, 0640, "segment");
    SAME(s.shm_segsz, SIZE, "size of the segment");
    SAME(s.shm_cpid, getpid(), "creator of the segment");
    SAME(s.shm_nattch, 4 + 2 + 4 + 2, "attachments");
    VERIFY(a, 100 * 4096, 1, "shared memory");
    ZEROS(a + 100 * 4096, 50 * 4096, "zeros in shared memory");
    CHECK(((uint64_t *)a)[200 * 512] == word_at(200 * 512, 1), "shared memory differs");
    CHECK(!memcmp(a, ro, SIZE), "the read-only attachment is another memory");
    CHECK(!memcmp(a + 10 * 4096, part + 10 * 4096, 10 * 4096), "the part is another memory");
    part[10 * 4096] ^= 1;
    CHECK(ro[10 * 4096] == part[10 * 4096], "the attachments are not the same memory");
    part[10 * 4096] ^= 1;
    CHECK(writable(a) == 1 && writable(ro) == 0, "protection of the attachments");
    CHECK(mprotect(ro, 4096, PROT_READ | PROT_WRITE) == -1 && errno == EACCES, "a read-only attachment made writable");
    CHECK(writable(guarded) == 1 && writable(guarded + 4096) == 0, "protection inside an attachment");
    CHECK(writable(part) == -1 && writable(part + 20 * 4096) == -1, "the rest of a part is mapped");
    MUST(shmctl(loose, IPC_STAT, &s) == 0);
    perm(&s.shm_perm, key + 1, 0600, "loose segment");
    SAME(s.shm_nattch, 0, "attachments of the loose segment");
    l = shmat(loose, NULL, 0);
    MUST(l != (void *)-1);
    ZEROS(l, 1 << 20, "loose segment");
    VERIFY(l + (1 << 20), 1 << 20, 2, "loose segment");
    ZEROS(l + (2 << 20), 1 << 20, "loose segment");
    VERIFY(d, 8192, 3, "removed segment");
    MUST(shmctl(doomed, IPC_STAT, &s) == 0);
    CHECK(s.shm_perm.mode & SHM_DEST, "the removed segment is not to be destroyed");
    SAME(shmget(key + 2, 0, 0), locked, "the second segment of that key");
    MUST(shmctl(locked, IPC_STAT, &s) == 0);
    perm(&s.shm_perm, key + 2, 0606, "locked segment");
    SAME(!!(s.shm_perm.mode & SHM_LOCKED), lock, "locked");

    SAME(semget(key, 0, 0), sems, "number of the semaphores");
    struct semid_ds v;
    MUST(semctl(sems, 0, IPC_STAT, (union semun){.buf = &v}) == 0);
    perm(&v.sem_perm, key, 0620, "semaphores");
    static const int want[] = {5, 4, 32765, 5, 11, 1}, after[] = {1, 4, 32767, 5, 11, 1};
    for (int i = 0; i < 6; i++)
        SAME(semctl(sems, i, GETVAL), want[i], "value of a semaphore");
    SAME(semctl(sems, 0, GETPID), child, "pid of a semaphore");
    SAME(semctl(sems, 2, GETPID), child, "pid of a semaphore");
    SAME(semctl(sems, 1, GETPID), getpid(), "pid of a semaphore");
    SAME(semctl(sems, 4, GETPID), getpid(), "pid of a semaphore");

    SAME(msgget(key, 0), queue, "number of the queue");
    MUST(msgctl(queue, IPC_STAT, &q) == 0);
    perm(&q.msg_perm, key, 0600, "queue");
    SAME(q.msg_qnum, 8, "messages");
    SAME(q.msg_qbytes, 9000, "room of the queue");
    SAME(q.msg_lspid, child, "last sender");
    SAME(q.msg_lrpid, getpid(), "last receiver");
    for (int i = 0; i < 7; i++) {
        SAME(msgrcv(queue, &m, 4000, 0, IPC_NOWAIT), i * 100, "size of a message");
        SAME(m.type, 7 - i, "type of a message");
        VERIFY(m.text, i * 100, 10 + i, "a message");
    }
    SAME(msgrcv(queue, &m, 4000, 1000, IPC_NOWAIT), 3, "the last message");
    MUST(msgctl(empty, IPC_STAT, &q) == 0);
    SAME(q.msg_qnum, 0, "messages in the empty queue");

    MUST(write(down[1], "d", 1) == 1);
    int status;
    MUST(waitpid(child, &status, 0) == child);
    CHECK(status == 0, "the child ended with %#x", status);
    SAME(*(volatile int *)a, 4711, "the child's memory is another one");
    for (int i = 0; i < 6; i++)
        SAME(semctl(sems, i, GETVAL), after[i], "value of a semaphore after its undoing");
    /* What our own end would undo is seen by a child that shares our list, ended with it: by unshare. */
    MUST(unshare(0x00040000 /* CLONE_SYSVSEM */) == 0);
    static const int end[] = {1, 7, 32767, 0, 20001, 1};
    for (int i = 0; i < 6; i++)
        SAME(semctl(sems, i, GETVAL), end[i], "value of a semaphore after our own undoing");
    SAME(shmdt(part + 10 * 4096), -1, "a part without its start");
    MUST(shmdt(ro) == 0 && shmdt(guarded) == 0 && shmdt(a) == 0 && shmdt(d) == 0);
    CHECK(shmctl(doomed, IPC_STAT, &s) == -1, "the removed segment is still there");
    clean();
    ok();
}
