/* Services of all kinds are made, used and ended at random, by seed: what is left at any moment is a job that nobody has
 * thought of. Several workers do so, each for itself, in rounds (stress.h).
 *
 * usage: stress GO WRONG SEED KEY [ROUNDS,ROUNDS,...]
 *
 * Without ROUNDS it goes on until GO appears, taking its time, ends everything that there is, and says
 * `ANSWER rounds,rounds,... hash`. With ROUNDS each worker makes so many, as fast as it can; the answer must be the same.
 * KEY: keys of its System V objects begin there, a million of them. Files are made in the working directory and left there.
 */
#include "stress_channels.h"
#include "stress_events.h"
#include "stress_files.h"
#include "stress_memory.h"
#include "stress_tasks.h"

#define WORKERS 3

static const struct kind *const kinds[] = {&channel, &region, &file,  &counter, &polled, &timer, &signals,
                                           &watch,   &child,  &zombie, &thread, &pair,   &sysv};
#define KINDS (int)(sizeof kinds / sizeof *kinds)

struct result {
    uint64_t rounds, answer, used[KINDS], part[KINDS];
};

/* What a process has once: it is changed, and must have stayed what it was. */
static struct {
    uint64_t mask, nice, files, depth;
    char name[16];
} own;

static void attributes(void)
{
    char name[16] = {0}, path[64], seen[PATH_MAX];
    struct rlimit limit;
    mode_t mask = umask(0);
    umask(mask);
    EQUAL(mask, own.mask, "the umask");
    errno = 0;
    EQUAL(getpriority(PRIO_PROCESS, 0), own.nice, "the nice value");
    DO(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    EQUAL(limit.rlim_cur, own.files, "a limit");
    prctl(PR_GET_NAME, name);
    CHECK(strcmp(name, own.name) == 0, "a name: %s, not %s", name, own.name);
    switch (below(5)) {
    case 0:
        umask(own.mask = below(0100) & ~0700);
        break;
    case 1:
        if (own.nice < 15)
            DO(nice(1) == (int)++own.nice);
        break;
    case 2:
        limit.rlim_cur = own.files = 1500 + below(500);
        DO(setrlimit(RLIMIT_NOFILE, &limit) == 0);
        break;
    case 3:
        sprintf(own.name, "w%d-%llu", worker, (unsigned long long)below(1000));
        prctl(PR_SET_NAME, own.name);
        break;
    case 4: /* another working directory, for this moment only */
        sprintf(path, "w.%d", worker);
        int back = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        DO(back >= 0);
        DO(mkdir(path, 0700) == 0 || errno == EEXIST);
        DO(chdir(path) == 0);
        DO(getcwd(seen, sizeof seen) && strcmp(strrchr(seen, '/') + 1, path) == 0);
        DO(fchdir(back) == 0 && close(back) == 0);
        break;
    }
}

/* The rounds of a worker: all things are equal in what can happen to them. */
static void one_round(struct result *result)
{
    struct thing *t = &things[below(SLOTS)];
    if (one_in(20)) {
        attributes();
        return;
    }
    for (int i = 0; i < KINDS; i++)
        if (kinds[i] == t->kind)
            part = &result->part[i];
    if (t->kind && one_in(9)) {
        t->kind->end(t);
        memset(t, 0, sizeof *t);
    } else if (t->kind) {
        t->kind->use(t);
    } else {
        int all = 0, which = 0;
        for (int i = 0; i < KINDS; i++)
            all += kinds[i]->weight;
        for (int at = below(all); at >= kinds[which]->weight; which++)
            at -= kinds[which]->weight;
        memset(t, 0, sizeof *t);
        t->id = ++next_id;
        t->fd[0] = t->fd[1] = t->fd[2] = t->fd[3] = -1;
        part = &result->part[which];
        kinds[which]->make(t);
        t->kind = kinds[which];
        result->used[which]++;
        fold(which);
    }
}

__attribute__((noreturn)) static void work(uint64_t seed, uint64_t rounds, struct result *result)
{
    sigset_t set;
    struct rlimit limit;
    state = mix(seed, worker + 1);
    DO(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = own.files = 2000;
    DO(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    umask(own.mask = 022);
    own.nice = getpriority(PRIO_PROCESS, 0);
    prctl(PR_SET_NAME, strcpy(own.name, "worker"));
    sigemptyset(&set);
    for (int i = SIGRTMIN + 2; i <= SIGRTMIN + 25; i++)
        sigaddset(&set, i);
    DO(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
    signal(SIGPIPE, SIG_IGN);
    for (; rounds ? round_now < rounds : !told(); round_now++) {
        one_round(result);
        if (!rounds && round_now % 4 == 0)
            short_sleep();
    }
    for (struct thing *t = things; t < things + SLOTS; t++)
        if (t->kind) {
            t->kind->end(t);
            t->kind = NULL;
        }
    result->rounds = round_now;
    result->answer = answer;
    _exit(0);
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    CHECK(mode_count >= 2, "usage: stress GO WRONG SEED KEY [ROUNDS,...]");
    uint64_t seed = strtoull(mode_args[0], NULL, 10), rounds[WORKERS] = {0}, all = 0;
    base_key = atoi(mode_args[1]);
    char *list = mode_count > 2 ? mode_args[2] : NULL;
    for (int i = 0; list && i < WORKERS; i++) {
        rounds[i] = strtoull(list, &list, 10);
        if (*list == ',')
            list++;
    }
    struct result *results = shared_memory(sizeof *results * WORKERS);
    pid_t pids[WORKERS];
    for (worker = 0; worker < WORKERS; worker++) {
        MUST((pids[worker] = fork()) >= 0);
        if (!pids[worker])
            work(seed, rounds[worker], &results[worker]);
    }
    ready();
    for (int i = 0; i < WORKERS; i++) { /* whichever ends first: one that fails ends the run */
        int status;
        pid_t pid = waitpid(-1, &status, 0);
        CHECK(pid > 0 && status == 0, "worker %d ended with status %#x", (int)pid, status);
    }
    if (WRONG(1))
        results[1].answer ^= 1;
    char line[200] = "", counts[400] = "";
    for (int i = 0; i < WORKERS; i++) {
        sprintf(line + strlen(line), "%s%llu", i ? "," : "", (unsigned long long)results[i].rounds);
        all = mix(all, results[i].answer);
    }
    for (int k = 0; k < KINDS; k++)
        sprintf(counts + strlen(counts), " %s %llu %04llx", kinds[k]->name,
                (unsigned long long)(results[0].used[k] + results[1].used[k] + results[2].used[k]),
                (unsigned long long)(results[0].part[k] + results[1].part[k] + results[2].part[k]) & 0xffff);
    say("MADE%s", counts);
    say("ANSWER %s %016llx", line, (unsigned long long)all);
    ok();
}
