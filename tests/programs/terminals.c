/* Pairs of pseudo-terminals held by the program itself.
 *
 * Modes: pair (settings, size, packet mode, lock, exclusive use, flags of several descriptors), canonical and raw
 * (what was typed and not read, what was written and not read), stopped (output stopped by ^S), full (more output than
 * the line discipline holds), session (a session on the terminal: leader, group in front, group behind, /dev/tty, a
 * member that gave the terminal up), ends (master closed, slave closed, slave never opened).
 */
#include "check.h"
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <termios.h>

static int master, slave;
static char name[64];

static void pair(void)
{
    master = posix_openpt(O_RDWR | O_NOCTTY);
    MUST(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0);
    MUST(ptsname_r(master, name, sizeof name) == 0);
    slave = open(name, O_RDWR | O_NOCTTY);
    MUST(slave >= 0);
}

static int integer(int fd, unsigned long request)
{
    int value = -1;
    MUST(ioctl(fd, request, &value) == 0);
    return value;
}

static struct termios settings(int fd)
{
    struct termios t;
    MUST(tcgetattr(fd, &t) == 0);
    return t;
}

static void same_name(int fd)
{
    char now[64];
    CHECK(ttyname_r(fd, now, sizeof now) == 0, "no ttyname");
    CHECK(strcmp(now, name) == 0, "ttyname is %s, was %s", now, name);
}

static void check_read(int fd, const char *want, size_t size, const char *what)
{
    char got[8192];
    struct pollfd p = {fd, POLLIN, 0};
    CHECK(poll(&p, 1, 5000) == 1, "%s: nothing to read", what);
    ssize_t n = read(fd, got, sizeof got);
    for (ssize_t more = n; more > 0 && more % 64 == 0 && n < (ssize_t)size && poll(&p, 1, 50) == 1; n += more)
        more = read(fd, got + n, size - n); /* the kernel reads in pieces */
    CHECK(n == (ssize_t)size && memcmp(got, want, size) == 0, "%s: read %zd bytes '%.*s', wanted %zu", what, n,
          (int)(n > 0 ? n : 0), got, size);
}

static void nothing(int fd, const char *what)
{
    struct pollfd p = {fd, POLLIN, 0};
    CHECK(poll(&p, 1, 50) == 0, "%s: something to read (%d)", what, p.revents);
}

static void do_pair(void)
{
    pair();
    struct termios t = settings(slave);
    t.c_iflag = (t.c_iflag & ~ICRNL) | INLCR | IUTF8;
    t.c_lflag &= ~(ECHO | ICANON);
    t.c_cc[VINTR] = 7;
    t.c_cc[VMIN] = 3;
    t.c_cc[VTIME] = 9;
    cfsetospeed(&t, B9600);
    MUST(tcsetattr(slave, TCSANOW, &t) == 0);
    struct winsize w = {41, 133, 7, 8};
    MUST(ioctl(slave, TIOCSWINSZ, &w) == 0);
    int on = 1;
    MUST(ioctl(master, TIOCPKT, &on) == 0);
    int second = open(name, O_WRONLY | O_NOCTTY | O_NONBLOCK);
    int peer = ioctl(master, TIOCGPTPEER, O_RDONLY | O_NOCTTY);
    int flags_peer = fcntl(peer, F_GETFL), flags_second = fcntl(second, F_GETFL);
    int shared = dup(slave);
    MUST(second >= 0 && peer >= 0 && shared >= 0);
    MUST(tcflush(slave, TCOFLUSH) == 0); /* leaves TIOCPKT_FLUSHWRITE for the master to see */
    MUST(fcntl(master, F_SETFL, O_RDWR | O_NONBLOCK) == 0);
    MUST(ioctl(slave, TIOCEXCL) == 0);
    MUST(ioctl(master, TIOCSPTLCK, &on) == 0);
    fchmod(slave, 0640);
    ready();
    if (WRONG(1))
        t.c_cc[VINTR] = 8, MUST(tcsetattr(slave, TCSANOW, &t) == 0);
    if (WRONG(2))
        w.ws_col++, MUST(ioctl(slave, TIOCSWINSZ, &w) == 0);
    wait_go();
    struct termios u = settings(slave);
    t.c_cc[VINTR] = 7;
    CHECK(u.c_iflag == t.c_iflag && u.c_oflag == t.c_oflag && u.c_cflag == t.c_cflag && u.c_lflag == t.c_lflag,
          "flags differ");
    CHECK(memcmp(u.c_cc, t.c_cc, sizeof u.c_cc) == 0, "characters differ");
    struct winsize v;
    MUST(ioctl(master, TIOCGWINSZ, &v) == 0);
    CHECK(v.ws_row == 41 && v.ws_col == 133 && v.ws_xpixel == 7 && v.ws_ypixel == 8, "size %d %d", v.ws_row, v.ws_col);
    SAME(integer(master, TIOCGPKT), 1, "packet mode");
    SAME(integer(master, TIOCGPTLCK), 1, "lock");
    SAME(integer(slave, TIOCGEXCL), 1, "exclusive use");
    SAME(fcntl(master, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDWR | O_NONBLOCK, "flags of the master");
    SAME(fcntl(second, F_GETFL), flags_second, "flags of the second");
    SAME(fcntl(peer, F_GETFL), flags_peer, "flags of the peer");
    SAME(fcntl(slave, F_SETFL, O_RDWR | O_NONBLOCK), 0, "F_SETFL");
    CHECK(fcntl(shared, F_GETFL) & O_NONBLOCK, "the duplicate is not one any more");
    struct stat st;
    MUST(fstat(slave, &st) == 0);
    SAME(st.st_mode & 0777, 0640, "mode of the slave");
    same_name(slave);
    check_read(master, "\2", 1, "packet status"); /* TIOCPKT_FLUSHWRITE */
    MUST(write(slave, "x", 1) == 1);
    check_read(master, "\0x", 2, "packet");
}

static const char LINES[] = "first\nsecond \303\244 line\n";

static void settle(int fd, int size)
{
    UNTIL(integer(fd, FIONREAD) >= size, 5, "bytes in the terminal");
}

static void do_canonical(void)
{
    pair();
    struct termios t = settings(slave);
    t.c_cc[VEOL] = ';';
    MUST(tcsetattr(slave, TCSANOW, &t) == 0);
    static const char typed[] = "first\rsecond \303\244 line\n"
                                "by eol;"
                                "by eof\4"
                                "quoted \026\n\026\026\026\4 end\n"
                                "\4"
                                "being tyq\177ped";
    MUST(write(master, typed, sizeof typed - 1) == sizeof typed - 1);
    MUST(write(slave, "out\n", 4) == 4);
    UNTIL(integer(slave, FIONREAD) >= (int)(sizeof LINES - 1) + 7 + 6 + 15, 5, "typed lines");
    short_sleep();
    char echo[512];
    ssize_t size = 0;
    if (mode_count > 1) { /* the other way round: nothing to read for the master */
        size = read(master, echo, sizeof echo);
        MUST(size > 4);
    }
    int waiting = integer(master, FIONREAD);
    ready();
    if (WRONG(1))
        MUST(write(master, "\177", 1) == 1);
    if (WRONG(2))
        MUST(tcflush(slave, TCIFLUSH) == 0);
    wait_go();
    if (!WRONG(1))
        SAME(integer(master, FIONREAD), waiting, "output");
    check_read(slave, "first\n", 6, "line 1");
    check_read(slave, "second \303\244 line\n", 15, "line 2");
    check_read(slave, "by eol;", 7, "line 3");
    check_read(slave, "by eof", 6, "line 4");
    check_read(slave, "quoted \n\026\4 end\n", 15, "line 5");
    check_read(slave, "", 0, "line 6");
    nothing(slave, "the line being typed");
    MUST(write(master, "\177\177\177et\n", 6) == 6);
    check_read(slave, "being tyet\n", 11, "line 7");
}

static void do_raw(void)
{
    pair();
    struct termios t = settings(slave);
    cfmakeraw(&t);
    t.c_cc[VMIN] = 200;
    t.c_cc[VTIME] = 0;
    MUST(tcsetattr(slave, TCSANOW, &t) == 0);
    char in[256], out[256];
    for (int i = 0; i < 256; i++)
        in[i] = i, out[i] = 255 - i;
    MUST(write(master, in, 150) == 150);
    MUST(write(slave, out, 256) == 256);
    settle(slave, 150);
    settle(master, 256);
    ready();
    if (WRONG(1))
        MUST(write(slave, "!", 1) == 1), MUST(tcflush(slave, TCIFLUSH) == 0);
    wait_go();
    SAME(integer(slave, FIONREAD), 150, "input");
    SAME(integer(master, FIONREAD), 256, "output");
    nothing(slave, "VMIN not reached");
    MUST(write(master, in + 150, 106) == 106);
    settle(slave, 256);
    t.c_cc[VMIN] = 1;
    MUST(tcsetattr(slave, TCSANOW, &t) == 0);
    check_read(slave, in, 256, "input");
    check_read(master, out, 256, "output");
}

static void do_full(void)
{
    pair();
    struct termios t = settings(slave);
    cfmakeraw(&t);
    MUST(tcsetattr(slave, TCSANOW, &t) == 0);
    MUST(fcntl(slave, F_SETFL, O_RDWR | O_NONBLOCK) == 0 && fcntl(master, F_SETFL, O_RDWR | O_NONBLOCK) == 0);
    static unsigned char block[200000];
    for (size_t i = 0; i < sizeof block; i++)
        block[i] = word_at(i, 3);
    ssize_t out = 0, in = 0, n;
    for (int k = 0; k < 20; k++, short_sleep()) {
        while ((n = write(slave, block + out, 977)) > 0)
            out += n;
        while ((n = write(master, block + in, 331)) > 0)
            in += n;
    }
    MUST(out > 20000 && in > 20000 && out < (ssize_t)sizeof block - 1000);
    ready();
    if (WRONG(1))
        MUST(read(master, block, 1) == 1);
    wait_go();
    static unsigned char got[200000];
    for (int pass = 0; pass < 2; pass++) {
        ssize_t want = pass ? in : out, at = 0;
        struct pollfd p = {pass ? slave : master, POLLIN, 0};
        while (at < want && poll(&p, 1, 2000) == 1 && (n = read(p.fd, got + at, sizeof got - at)) > 0)
            at += n;
        SAME(at, want, pass ? "bytes of input" : "bytes of output");
        CHECK(memcmp(got, block, want) == 0, "bytes of pass %d differ", pass);
        nothing(p.fd, "more");
    }
}

static void do_stopped(void)
{
    pair();
    MUST(write(slave, "before", 6) == 6);
    settle(master, 6);
    MUST(write(master, "\023", 1) == 1);
    struct pollfd p = {slave, POLLOUT, 0};
    UNTIL(poll(&p, 1, 0) == 0, 5, "stop");
    pid_t writer = fork();
    if (writer == 0) {
        MUST(write(slave, "after", 5) == 5);
        _exit(0);
    }
    UNTIL(blocked_in(writer) == 1 || state_of(writer) == 'S', 5, "writer");
    ready();
    if (WRONG(1)) {
        MUST(write(master, "\021", 1) == 1);
        UNTIL(integer(master, FIONREAD) == 11, 5, "output");
    }
    wait_go();
    short_sleep();
    SAME(integer(master, FIONREAD), 6, "output while stopped");
    CHECK(waitpid(writer, NULL, WNOHANG) == 0, "the writer is done");
    check_read(master, "before", 6, "output before the stop");
    MUST(write(master, "\021", 1) == 1);
    check_read(master, "after", 5, "output after the stop");
    int status;
    MUST(waitpid(writer, &status, 0) == writer && status == 0);
}

/* -- a session ---------------------------------------------------------------------------------------------------- */

struct shared {
    _Atomic int up, interrupts[4], told, verdicts;
    pid_t pids[4];
};
static struct shared *all;
static int me;

static void on_int(int number)
{
    (void)number;
    all->interrupts[me]++;
}

static void member(int number, pid_t group, int tty)
{
    me = number;
    all->pids[number] = getpid();
    setpgid(0, group);
    signal(SIGINT, on_int);
    if (number == 3) {
        MUST(ioctl(tty, TIOCNOTTY) == 0);
        CHECK(open("/dev/tty", O_RDWR) < 0 && errno == ENXIO, "still a terminal");
    }
    if (WRONG(1) && number == 2)
        MUST(ioctl(tty, TIOCNOTTY) == 0);
    all->up++;
    while (!all->told)
        short_sleep();
    if (number == 3) {
        CHECK(open("/dev/tty", O_RDWR) < 0 && errno == ENXIO, "a terminal again");
    } else {
        int now = open("/dev/tty", O_RDWR);
        CHECK(now >= 0, "no terminal any more");
        SAME(tcgetsid(now), getsid(0), "session of the terminal");
        SAME(tcgetpgrp(now), all->pids[1], "group in front");
    }
    all->verdicts++;
    for (;;)
        pause();
}

static void leader(void)
{
    me = 0;
    all->pids[0] = getpid();
    MUST(setsid() == getpid());
    int tty = open(name, O_RDWR); /* becomes the controlling terminal */
    MUST(tty >= 0);
    close(master);
    close(slave);
    signal(SIGTTOU, SIG_IGN);
    signal(SIGINT, on_int);
    int named = open("/dev/tty", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    MUST(named >= 0);
    pid_t child[4];
    for (int i = 1; i < 4; i++) {
        child[i] = fork();
        if (child[i] == 0)
            member(i, 0, tty);
        setpgid(child[i], child[i]);
    }
    MUST(tcsetpgrp(tty, child[1]) == 0);
    UNTIL(all->up == 3, 10, "members");
    all->up++;
    wait_go();
    if (WRONG(2))
        MUST(tcsetpgrp(tty, child[2]) == 0);
    struct stat st;
    MUST(fstat(named, &st) == 0);
    SAME(st.st_rdev, makedev(5, 0), "/dev/tty");
    char link[64] = "", path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", named);
    MUST(readlink(path, link, sizeof link - 1) > 0);
    CHECK(strcmp(link, "/dev/tty") == 0, "/dev/tty is %s", link);
    CHECK(fcntl(named, F_GETFD) & FD_CLOEXEC && fcntl(named, F_GETFL) & O_NONBLOCK, "flags of /dev/tty");
    CHECK(read(named, path, 1) < 0 && errno == EIO, "read from behind"); /* SIGTTIN: orphaned group */
    SAME(tcgetpgrp(named), child[1], "group in front");
    SAME(tcgetsid(tty), getpid(), "session");
    same_name(tty);
    all->told = 1;
    UNTIL(all->verdicts == 3, 5, "verdicts of the members");
    all->told = 2;
    for (;;)
        pause();
}

static void kill_all(void)
{
    for (int i = 0; i < 4; i++)
        if (all->pids[i])
            kill(all->pids[i], SIGKILL);
}

static void do_session(void)
{
    all = shared_memory(sizeof *all);
    at_failure = kill_all;
    pair();
    pid_t child = fork();
    if (child == 0)
        leader();
    close(slave);
    UNTIL(all->up == 4, 10, "session");
    /* The terminal of ourselves, if we have one, is another one. */
    ready();
    wait_go();
    SAME(tcgetpgrp(master), all->pids[1], "group in front");
    SAME(tcgetsid(master), child, "session");
    UNTIL(all->told == 2 || waitpid(child, NULL, WNOHANG) != 0, 20, "leader");
    SAME(all->told, 2, "leader");
    MUST(write(master, "\3", 1) == 1);
    UNTIL(all->interrupts[1] == 1, 10, "SIGINT to the group in front");
    short_sleep();
    SAME(all->interrupts[0] + all->interrupts[2] + all->interrupts[3], 0, "SIGINT to others");
    close(master); /* hangs up: the leader and the group in front die of SIGHUP */
    int status;
    MUST(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGHUP, "the leader ended with %#x", status);
    for (int i = 1; i < 4; i++)
        kill(all->pids[i], SIGKILL);
}

static void do_ends(void)
{
    pair();
    int hung = slave;
    close(master);
    pair();
    MUST(write(slave, "last words", 10) == 10);
    settle(master, 10);
    close(slave);
    int half = master;
    int fresh = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK);
    MUST(fresh >= 0);
    char byte;
    ready();
    if (WRONG(1))
        MUST(read(half, &byte, 1) == 1);
    wait_go();
    SAME(read(hung, &byte, 1), 0, "end of file of the hung up");
    CHECK(write(hung, "x", 1) < 0 && errno == EIO, "the hung up takes output");
    check_read(half, "last words", 10, "last words");
    CHECK(read(half, &byte, 1) < 0 && errno == EIO, "the other end is not closed");
    CHECK(read(fresh, &byte, 1) < 0 && errno == EAGAIN, "never opened, but closed");
    SAME(integer(fresh, TIOCGPTLCK), 1, "lock of the fresh one");
    MUST(unlockpt(fresh) == 0);
    int late = open(ptsname(fresh), O_RDWR | O_NOCTTY);
    CHECK(late >= 0, "the slave of the fresh one");
    MUST(write(late, "y", 1) == 1);
    check_read(fresh, "y", 1, "output");
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    if (is_mode("pair"))
        do_pair();
    else if (is_mode("canonical"))
        do_canonical();
    else if (is_mode("raw"))
        do_raw();
    else if (is_mode("full"))
        do_full();
    else if (is_mode("stopped"))
        do_stopped();
    else if (is_mode("session"))
        do_session();
    else if (is_mode("ends"))
        do_ends();
    else
        FAIL("no such mode");
    ok();
}
