/* Identity, limits and settings of a process and its threads. */
#include "check.h"
#include <grp.h>
#include <sys/personality.h>
#include <sys/utsname.h>

struct thread_settings {
    char name[16];
    int policy, nice, priority, slack;
    cpu_set_t cpus;
    long ioprio;
};
struct settings {
    struct rlimit limits[RLIM_NLIMITS];
    uid_t uids[3];
    gid_t gids[3], groups[64];
    int group_count, dumpable, no_new_privs, persona, death_signal, keepcaps, thp, subreaper, tsc, child_policy;
    char oom[32], coredump[32], caps[5][32], fsuid[64], fsgid[64], seccomp[32];
    struct thread_settings thread[2];
    char cwd[512], root[64], host[65], exe[512], cmdline[1024];
};
static atomic_int there, finish;
static struct settings before, after;

static void look_thread(struct thread_settings *s)
{
    prctl(PR_GET_NAME, s->name);
    s->policy = sched_getscheduler(0);
    errno = 0;
    s->nice = getpriority(PRIO_PROCESS, gettid());
    struct sched_param p;
    sched_getparam(0, &p);
    s->priority = p.sched_priority;
    s->slack = prctl(PR_GET_TIMERSLACK);
    CPU_ZERO(&s->cpus);
    sched_getaffinity(0, sizeof s->cpus, &s->cpus);
    s->ioprio = syscall(SYS_ioprio_get, 1, 0);
}
static void slurp(const char *path, char *out, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, out, size - 1);
    if (fd >= 0)
        close(fd);
    memset(out + (n > 0 ? n : 0), 0, size - (n > 0 ? n : 0));
}
static void look(struct settings *s)
{
    for (int i = 0; i < RLIM_NLIMITS; i++)
        getrlimit(i, &s->limits[i]);
    getresuid(&s->uids[0], &s->uids[1], &s->uids[2]);
    getresgid(&s->gids[0], &s->gids[1], &s->gids[2]);
    s->group_count = getgroups(64, s->groups);
    s->dumpable = prctl(PR_GET_DUMPABLE);
    s->no_new_privs = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
    s->persona = personality(0xffffffff);
    prctl(PR_GET_PDEATHSIG, &s->death_signal);
    s->keepcaps = prctl(PR_GET_KEEPCAPS);
    s->thp = prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0);
    prctl(PR_GET_CHILD_SUBREAPER, &s->subreaper);
    prctl(PR_GET_TSC, &s->tsc);
    slurp("/proc/self/oom_score_adj", s->oom, sizeof s->oom);
    slurp("/proc/self/coredump_filter", s->coredump, sizeof s->coredump);
    static const char *caps[] = {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"};
    for (int i = 0; i < 5; i++)
        status_field("/proc/self/status", caps[i], s->caps[i], sizeof s->caps[i]);
    status_field("/proc/self/status", "Uid", s->fsuid, sizeof s->fsuid);
    status_field("/proc/self/status", "Gid", s->fsgid, sizeof s->fsgid);
    status_field("/proc/self/status", "Seccomp", s->seccomp, sizeof s->seccomp);
    look_thread(&s->thread[0]);
    MUST(getcwd(s->cwd, sizeof s->cwd));
    ssize_t n = readlink("/proc/self/root", s->root, sizeof s->root - 1);
    s->root[n > 0 ? n : 0] = 0;
    struct utsname u;
    uname(&u);
    strcpy(s->host, u.nodename);
    n = readlink("/proc/self/exe", s->exe, sizeof s->exe - 1);
    s->exe[n > 0 ? n : 0] = 0;
    slurp("/proc/self/cmdline", s->cmdline, sizeof s->cmdline);
}

static void *other(void *unused)
{
    (void)unused;
    prctl(PR_SET_NAME, "other (thread)");
    setpriority(PRIO_PROCESS, gettid(), 7);
    prctl(PR_SET_TIMERSLACK, 123456);
    cpu_set_t one;
    CPU_ZERO(&one);
    for (int i = CPU_SETSIZE - 1; i >= 0; i--)
        if (CPU_ISSET(i, &before.thread[0].cpus)) {
            CPU_SET(i, &one);
            break;
        }
    MUST(sched_setaffinity(0, sizeof one, &one) == 0);
    struct sched_param p = {0};
    sched_setscheduler(0, SCHED_IDLE, &p);
    look_thread(&before.thread[1]);
    there = 1;
    while (!finish)
        short_sleep();
    look_thread(&after.thread[1]);
    return NULL;
}

static void same_thread(int k)
{
    struct thread_settings *a = &before.thread[k], *b = &after.thread[k];
    CHECK(strcmp(a->name, b->name) == 0, "name of thread %d: %s, was %s", k, b->name, a->name);
    SAME(b->policy, a->policy, "scheduling policy");
    SAME(b->nice, a->nice, "nice");
    SAME(b->priority, a->priority, "scheduling priority");
    SAME(b->slack, a->slack, "timer slack");
    SAME(b->ioprio, a->ioprio, "I/O priority");
    CHECK(CPU_EQUAL(&a->cpus, &b->cpus), "CPU affinity of thread %d", k);
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    look(&before);
    struct rlimit l = {100, before.limits[RLIMIT_NOFILE].rlim_max < 4000 ? 200 : 4000};
    MUST(setrlimit(RLIMIT_NOFILE, &l) == 0);
    l = (struct rlimit){1 << 20, 2 << 20};
    MUST(setrlimit(RLIMIT_CORE, &l) == 0 && setrlimit(RLIMIT_MSGQUEUE, &(struct rlimit){1000, 2000}) == 0);
    MUST(setrlimit(RLIMIT_FSIZE, &(struct rlimit){1 << 30, 1ul << 31}) == 0);
    MUST(setrlimit(RLIMIT_STACK, &(struct rlimit){6 << 20, 64 << 20}) == 0);
    MUST(setrlimit(RLIMIT_CPU, &(struct rlimit){5000, 6000}) == 0);
    MUST(setpriority(PRIO_PROCESS, 0, 3) == 0);
    struct sched_param p = {0};
    MUST(sched_setscheduler(0, SCHED_BATCH, &p) == 0);
    int fd = open("/proc/self/oom_score_adj", O_WRONLY);
    MUST(write(fd, "321", 3) == 3);
    close(fd);
    fd = open("/proc/self/coredump_filter", O_WRONLY);
    MUST(write(fd, "0x13", 4) == 4);
    close(fd);
    prctl(PR_SET_NAME, "weird ) name (");
    prctl(PR_SET_TIMERSLACK, 77777);
    syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 6); /* best effort, 6 */
    personality(before.persona | ADDR_NO_RANDOMIZE);
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    prctl(PR_SET_KEEPCAPS, 1);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    if (is_mode("privileges")) {
        MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
        prctl(PR_CAPBSET_DROP, 12); /* CAP_NET_ADMIN; ordinary users may not */
    }
    if (is_mode("undumpable"))
        MUST(prctl(PR_SET_DUMPABLE, 0) == 0);
    if (is_mode("other-uid")) { /* root only: another user, with root as the saved one */
        MUST(setgroups(3, (gid_t[]){4, 24, 27}) == 0);
        MUST(setresgid(65534, 65534, 0) == 0 && setresuid(65534, 65534, 0) == 0);
        MUST(prctl(PR_SET_DUMPABLE, 1) == 0);
    }
    MUST(prctl(PR_SET_PDEATHSIG, SIGHUP) == 0);
    pthread_t t;
    MUST(pthread_create(&t, NULL, other, NULL) == 0);
    UNTIL(there, 10, "thread");
    struct thread_settings keep = before.thread[1];
    look(&before);
    before.thread[1] = keep;
    if (WRONG(1))
        setpriority(PRIO_PROCESS, 0, 4);
    if (WRONG(2))
        setrlimit(RLIMIT_NOFILE, &(struct rlimit){99, l.rlim_max < 4000 ? 200 : 4000});
    if (WRONG(3))
        prctl(PR_SET_NAME, "weird");
    if (WRONG(4))
        prctl(PR_SET_PDEATHSIG, 0);
    ready();
    wait_go();
    finish = 1;
    pthread_join(t, NULL);
    look(&after);
    same_thread(0);
    same_thread(1);
    for (int i = 0; i < RLIM_NLIMITS; i++) {
        CHECK(before.limits[i].rlim_cur == after.limits[i].rlim_cur && before.limits[i].rlim_max == after.limits[i].rlim_max,
              "limit %d: %ld %ld, was %ld %ld", i, (long)after.limits[i].rlim_cur, (long)after.limits[i].rlim_max,
              (long)before.limits[i].rlim_cur, (long)before.limits[i].rlim_max);
    }
    for (int i = 0; i < 3; i++) {
        SAME(after.uids[i], before.uids[i], "uid");
        SAME(after.gids[i], before.gids[i], "gid");
    }
    SAME(after.group_count, before.group_count, "number of groups");
    CHECK(memcmp(before.groups, after.groups, sizeof before.groups) == 0, "groups");
    SAME(after.dumpable, before.dumpable, "dumpable");
    SAME(after.no_new_privs, before.no_new_privs, "no_new_privs");
    SAME(after.persona, before.persona, "personality");
    SAME(after.death_signal, before.death_signal, "parent-death signal");
    SAME(after.keepcaps, before.keepcaps, "keepcaps");
    SAME(after.thp, before.thp, "THP disable");
    SAME(after.subreaper, before.subreaper, "subreaper");
    SAME(after.tsc, before.tsc, "TSC");
    static const char *caps[] = {"inheritable", "permitted", "effective", "bounding", "ambient"};
    for (int i = 0; i < 5; i++)
        CHECK(strcmp(before.caps[i], after.caps[i]) == 0, "%s capabilities: %s, was %s", caps[i], after.caps[i],
              before.caps[i]);
#define TEXT(field) CHECK(strcmp(before.field, after.field) == 0, #field ": %s, was %s", after.field, before.field)
    TEXT(oom);
    TEXT(coredump);
    TEXT(fsuid);
    TEXT(fsgid);
    TEXT(seccomp);
    TEXT(cwd);
    TEXT(root);
    TEXT(host);
    TEXT(exe);
    CHECK(memcmp(before.cmdline, after.cmdline, sizeof before.cmdline) == 0, "cmdline");
    ok();
}
