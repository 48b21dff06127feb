/* inotify: watches on a folder that is open, on a file in the working directory and on a folder named on the command
 * line; numbers with gaps; flags. Mode `pending`: unread events, which a restart replaces by IN_Q_OVERFLOW. */
#include "check.h"
#include <sys/inotify.h>
#include <sys/ioctl.h>

static char room[1 << 16];
static struct inotify_event *next_event(int fd)
{
    static ssize_t size, at;
    if (at >= size) {
        struct pollfd p = {fd, POLLIN, 0};
        CHECK(poll(&p, 1, 3000) == 1, "no event");
        size = read(fd, room, sizeof room);
        CHECK(size > 0, "read of an inotify descriptor: %zd", size);
        at = 0;
    }
    struct inotify_event *e = (void *)(room + at);
    at += sizeof *e + e->len;
    return e;
}

static void touch(const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    MUST(fd >= 0 && write(fd, "x", 1) == 1 && close(fd) == 0);
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    char folder[600], file[700], inside[700], argument[600];
    snprintf(folder, sizeof folder, "%s.%d.folder", go_path, (int)getpid());
    snprintf(file, sizeof file, "%s.%d.file", go_path, (int)getpid());
    snprintf(inside, sizeof inside, "%s/inside", folder);
    snprintf(argument, sizeof argument, "%s", go_path);
    *strrchr(argument, '/') = 0;
    MUST(mkdir(folder, 0700) == 0);
    touch(file);
    int fd = inotify_init1(IN_NONBLOCK), open_folder = open(folder, O_RDONLY);
    MUST(fd >= 0 && open_folder >= 0);
    int a = inotify_add_watch(fd, folder, IN_CREATE | IN_DELETE | IN_ONLYDIR);
    for (int i = 0; i < 3; i++)
        MUST(inotify_rm_watch(fd, inotify_add_watch(fd, "/", IN_DELETE_SELF)) == 0);
    int b = inotify_add_watch(fd, file, IN_MODIFY | IN_EXCL_UNLINK);
    int c = inotify_add_watch(fd, argument, IN_MOVED_TO | IN_ONESHOT);
    MUST(a == 1 && b == 5 && c == 6);
    while (read(fd, room, sizeof room) > 0)
        ;
    int pending = is_mode("pending");
    if (pending)
        touch(inside);
    ready();
    wait_go();
    if (WRONG(1))
        inotify_rm_watch(fd, b);
    struct inotify_event *e;
    if (pending) {
        e = next_event(fd);
        if (e->mask & IN_Q_OVERFLOW)
            SAME(e->wd, -1, "overflow");
        else
            CHECK(e->wd == a && e->mask == IN_CREATE && !strcmp(e->name, "inside"), "the event that was pending");
        int waiting;
        MUST(ioctl(fd, FIONREAD, &waiting) == 0);
        SAME(waiting, 0, "more events");
    } else {
        SAME(read(fd, room, sizeof room), -1, "an event out of nothing");
        SAME(errno, EAGAIN, "flags");
        touch(inside);
        e = next_event(fd);
        CHECK(e->wd == a && e->mask == IN_CREATE && !strcmp(e->name, "inside"), "event of the folder: wd %d mask %#x", e->wd, e->mask);
    }
    touch(file);
    e = next_event(fd);
    CHECK(e->wd == b && e->mask == IN_MODIFY, "event of the file: wd %d mask %#x", e->wd, e->mask);
    MUST(unlink(inside) == 0);
    e = next_event(fd);
    CHECK(e->wd == a && e->mask == IN_DELETE, "event of the folder: wd %d mask %#x", e->wd, e->mask);
    MUST(rename(file, inside) == 0 && rename(inside, file) == 0);
    e = next_event(fd);
    CHECK(e->wd == c && e->mask == IN_MOVED_TO, "event of the argument's folder: wd %d mask %#x", e->wd, e->mask);
    e = next_event(fd);
    CHECK(e->wd == c && e->mask == IN_IGNORED, "the one-shot watch is still there");
    if (!pending)
        SAME(inotify_add_watch(fd, "/", IN_DELETE_SELF), 7, "the next number");
    ok();
}
