/*
 * The floor: what the kernel itself charges for each job of the benchmark.
 *
 * Every job issues the system calls that a careful program has to issue, and nothing else.  The program is a server, so
 * that run.py can interleave it, sample by sample, with everything it is compared to.  A request is one line on stdin,
 * its answer one line on stdout:
 *
 *     JOB             do JOB once                             ok SETUP_US TEARDOWN_US
 *     cycles N JOB    do JOB N times                          ok SUM_OF_SETUPS_US SUM_OF_TEARDOWNS_US
 *     drain           wait until the kernel has taken down    ok WAITED_US 0
 *                     every netns that was dropped so far
 *
 * Where the kernel refuses something, the answer is "error ..." with the call that failed, and the program ends.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "rtnetlink.h"

/* The three instants of a sample: setup lies between start and ready, teardown between ready and gone. */
struct sample {
    double start, ready, gone;
};

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

/* ---- namespaces ---- */

enum { NET, UTS, IPC, MNT, CGROUP, PID, KINDS };
static const struct {
    const char *name;
    int flag;
} KIND[] = {{"net", CLONE_NEWNET}, {"uts", CLONE_NEWUTS},       {"ipc", CLONE_NEWIPC},
            {"mnt", CLONE_NEWNS},  {"cgroup", CLONE_NEWCGROUP}, {"pid", CLONE_NEWPID}};

static int home[KINDS]; /* where this program started */
static int other_netns; /* a netns for `call` */

static int open_own(int kind) {
    char path[64];
    snprintf(path, sizeof path, "/proc/thread-self/ns/%s", KIND[kind].name);
    return (int)CHECK(open(path, O_RDONLY | O_CLOEXEC));
}

static void enter(int fd, int kind) {
    CHECK(setns(fd, KIND[kind].flag));
}

/* Those that cost next to nothing: made, held by an fd, left, dropped. */
static void simple_namespace(struct sample *s, int kind) {
    s->start = now_us();
    CHECK(unshare(KIND[kind].flag));
    int fd = open_own(kind);
    if (kind == MNT)
        CHECK(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
    enter(home[kind], kind);
    s->ready = now_us();
    close(fd);
    s->gone = now_us();
}

static void call(struct sample *s, int kind) {
    s->start = now_us();
    enter(other_netns, kind);
    enter(home[kind], kind);
    s->ready = s->gone = now_us();
}

static int open_rtnetlink(unsigned groups) {
    struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = groups};
    int fd = (int)CHECK(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
    if (groups)
        CHECK(bind(fd, (void *)&address, sizeof address));
    return fd;
}

static void write_file(const char *path, const char *text) {
    int fd = (int)CHECK(open(path, O_WRONLY | O_CLOEXEC));
    CHECK(write(fd, text, strlen(text)));
    close(fd);
}

static struct netns make_netns(unsigned groups) { /* leaves the caller inside */
    struct netns ns = {0};
    CHECK(unshare(CLONE_NEWNET));
    ns.fd = open_own(NET);
    ns.rtnl = open_rtnetlink(groups);
    return ns;
}

static void drop_netns(struct netns *ns) { /* a netlink socket holds its netns as much as the fd does */
    close(ns->rtnl);
    close(ns->fd);
}

static void netns(struct sample *s, int unused) {
    struct request r = {0};
    s->start = now_us();
    struct netns ns = make_netns(0);
    enter(home[NET], NET);
    add_link_up(&r, LO);
    send_and_await_ack(&ns, &r);
    s->ready = now_us();
    drop_netns(&ns);
    s->gone = now_us();
}

/* One echo, answered within a second or lost: EAGAIN.  An IPv4 packet arrives with its IP header. */
static void await_first_echo(int raw_socket, const struct family *f) {
    struct timeval deadline = {.tv_sec = 1};
    struct sockaddr_in to4 = {.sin_family = AF_INET};
    struct sockaddr_in6 to6 = {.sin6_family = AF_INET6};
    struct icmphdr echo = {.type = f->echo, .un.echo.id = htons(1), .checksum = htons(0xffff - 0x0800 - 0x0001)};
    unsigned char packet[512];
    int v4 = f->domain == AF_INET;
    inet_pton(f->domain, f->guest, v4 ? (void *)&to4.sin_addr : (void *)&to6.sin6_addr);
    CHECK(setsockopt(raw_socket, SOL_SOCKET, SO_RCVTIMEO, &deadline, sizeof deadline));
    CHECK(sendto(raw_socket, &echo, sizeof echo, 0, v4 ? (void *)&to4 : (void *)&to6, v4 ? sizeof to4 : sizeof to6));
    do
        CHECK(recv(raw_socket, packet, sizeof packet, 0));
    while (packet[v4 ? sizeof(struct iphdr) : 0] != f->echo_reply);
}

#define NO_DAD "/proc/sys/net/ipv6/conf/default/accept_dad" /* of the netns of whoever opens it */

/* Until the first echo of each family; with LINK_LOCAL also until the link-local addresses can be used. */
static void veth_pair(struct sample *s, int families) {
    struct request host_r = {0}, guest_r = {0};
    unsigned groups = families & V6 ? RTMGRP_IPV6_IFADDR : 0;
    int raw_socket[2];
    s->start = now_us();
    struct netns host = make_netns(groups);
    if (families & LINK_LOCAL)
        write_file(NO_DAD, "0");
    for (int n = 0; n < 2; n++)
        if (families & 1 << n)
            raw_socket[n] = (int)CHECK(socket(FAMILY[n].domain, SOCK_RAW | SOCK_CLOEXEC, FAMILY[n].protocol));
    struct netns guest = make_netns(groups);
    if (families & LINK_LOCAL)
        write_file(NO_DAD, "0");
    enter(home[NET], NET);

    add_veth(&host_r, guest.fd);
    add_link_up(&host_r, LO);
    add_link_up(&guest_r, ETH0);
    add_link_up(&guest_r, LO);
    for (int n = 0; n < 2; n++)
        if (families & 1 << n) {
            add_address(&host_r, &FAMILY[n], FAMILY[n].host);
            add_address(&guest_r, &FAMILY[n], FAMILY[n].guest);
        }
    send_and_await_ack(&host, &host_r);
    send_and_await_ack(&guest, &guest_r);
    confirm_eth0_is_up(&host);
    confirm_eth0_is_up(&guest);
    if (families & V6) {
        read_until(&host, &host.address6_usable);
        read_until(&guest, &guest.address6_usable);
    }
    if (families & LINK_LOCAL) {
        read_until(&host, &host.link_local_usable);
        read_until(&guest, &guest.link_local_usable);
    }
    for (int n = 0; n < 2; n++)
        if (families & 1 << n)
            await_first_echo(raw_socket[n], &FAMILY[n]);
    s->ready = now_us();

    for (int n = 0; n < 2; n++)
        if (families & 1 << n)
            close(raw_socket[n]);
    drop_netns(&host);
    drop_netns(&guest);
    s->gone = now_us();
}

/*
 * Namespaces are taken down in the background, in batches, in the order in which they were dropped.  So: drop a marker,
 * one end of a veth pair whose peer lives in a netns that stays, and await the kernel's word that the peer is gone.
 * A closed netlink socket lets go of its netns only after a grace period of RCU: let that pass first.
 */
static void drain_once(void) {
    static struct netns watch;
    struct request r = {0};
    char buffer[8192];
    for (int i = 0; i < 2; i++)
        CHECK(syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0));
    usleep(5000);
    if (watch.fd == 0)
        watch = make_netns(0);
    enter(watch.fd, NET);
    int news = open_rtnetlink(RTMGRP_LINK);
    CHECK(unshare(CLONE_NEWNET));
    int marker = open_own(NET);
    enter(home[NET], NET);
    add_veth(&r, marker);
    send_and_await_ack(&watch, &r);
    close(marker);
    do
        CHECK(recv(news, buffer, sizeof buffer, 0));
    while (((struct nlmsghdr *)buffer)->nlmsg_type != RTM_DELLINK);
    close(news);
}

static void drain(struct sample *s, int times) { /* a marker may share the last batch, and be gone before the batch is */
    s->start = now_us();
    while (times--)
        drain_once();
    s->ready = s->gone = now_us();
}

/* ---- processes ---- */

extern char **environ;
static char *const TRUE_ARGV[] = {"true", NULL};

static pid_t fork_into(int namespaces) { /* like fork(2), the child being in new namespaces */
    return (pid_t)CHECK(syscall(SYS_clone, namespaces | SIGCHLD, 0, 0, 0, 0));
}

static void await_end(pid_t pid, int wanted_status) {
    int status;
    CHECK(waitpid(pid, &status, 0));
    errno = ECHILD;
    CHECK(status == wanted_status ? 0 : -1);
}

static void run(struct sample *s, int unused) {
    s->start = now_us();
    pid_t pid = (pid_t)CHECK(vfork());
    if (pid == 0) {
        execve("/bin/true", TRUE_ARGV, environ);
        _exit(1);
    }
    await_end(pid, 0);
    s->ready = s->gone = now_us();
}

static void pid_namespace_of_one_command(struct sample *s, int unused) {
    s->start = now_us();
    pid_t pid = fork_into(CLONE_NEWPID);
    if (pid == 0) {
        execve("/bin/true", TRUE_ARGV, environ);
        _exit(1);
    }
    await_end(pid, 0);
    s->ready = s->gone = now_us();
}

static void be_init(int ready) { /* with its own /proc; what nobody else waits for is reaped by the kernel */
    signal(SIGCHLD, SIG_IGN);
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)
        || mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) || write(ready, "", 1) != 1)
        _exit(1);
    for (;;)
        pause();
}

static void pid_namespace(struct sample *s, int run_true_inside) {
    int ready[2];
    char byte;
    struct sample inside;
    s->start = now_us();
    CHECK(pipe2(ready, O_CLOEXEC));
    pid_t init = fork_into(CLONE_NEWPID | CLONE_NEWNS);
    if (init == 0)
        be_init(ready[1]);
    close(ready[1]);
    errno = ECHILD;
    CHECK(read(ready[0], &byte, 1) == 1 ? 0 : -1);
    close(ready[0]);
    int pidfd = (int)CHECK(syscall(SYS_pidfd_open, init, 0));
    if (run_true_inside) {
        CHECK(setns(pidfd, CLONE_NEWPID | CLONE_NEWNS));
        run(&inside, 0);
        enter(home[PID], PID);
        enter(home[MNT], MNT);
    }
    s->ready = now_us();
    CHECK(syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0));
    await_end(init, SIGKILL);
    close(pidfd);
    s->gone = now_us();
}

static const char *proc_file(pid_t pid, const char *name) {
    static char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
    return path;
}

/* A user namespace is born with a process, which waits until its maps are written; then the fd alone keeps it. */
static void user_namespace(struct sample *s, int unused) {
    int held[2];
    char byte;
    s->start = now_us();
    CHECK(pipe2(held, O_CLOEXEC));
    pid_t pid = fork_into(CLONE_NEWUSER);
    if (pid == 0) {
        close(held[1]);
        _exit((int)read(held[0], &byte, 1));
    }
    write_file(proc_file(pid, "uid_map"), "0 0 1\n");
    write_file(proc_file(pid, "setgroups"), "deny");
    write_file(proc_file(pid, "gid_map"), "0 0 1\n");
    int fd = (int)CHECK(open(proc_file(pid, "ns/user"), O_RDONLY | O_CLOEXEC));
    s->ready = now_us();
    close(held[0]);
    close(held[1]);
    await_end(pid, 0);
    close(fd);
    s->gone = now_us();
}

/* ---- overlays ---- */

static void make_file(const char *path, const char *text) {
    int fd = (int)CHECK(open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    CHECK(write(fd, text, strlen(text)));
    close(fd);
}

/* On a tmpfs in a mount namespace of its own, which is made once. */
static void overlay_fs(struct sample *s, int unused) {
    static int ready;
    if (!ready) {
        CHECK(unshare(CLONE_NEWNS));
        CHECK(mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL));
        CHECK(mount(NULL, "/", NULL, MS_REC | MS_SHARED, NULL));
        CHECK(mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID, NULL));
        close(home[MNT]);
        home[MNT] = open_own(MNT);
        ready = 1;
    }
    s->start = now_us();
    CHECK(mkdir("/tmp/o", 0777));
    CHECK(mkdir("/tmp/o/lower", 0777));
    make_file("/tmp/o/lower/a", "a\n");
    CHECK(mkdir("/tmp/o/upper", 0777));
    CHECK(mkdir("/tmp/o/work", 0777));
    CHECK(mkdir("/tmp/o/merged", 0777));
    CHECK(mount("overlay", "/tmp/o/merged", "overlay", 0,
                "lowerdir=/tmp/o/lower,upperdir=/tmp/o/upper,workdir=/tmp/o/work"));
    s->ready = now_us();
    CHECK(umount2("/tmp/o/merged", 0));
    CHECK(rmdir("/tmp/o/merged"));
    CHECK(rmdir("/tmp/o/work/work"));
    CHECK(rmdir("/tmp/o/work"));
    CHECK(rmdir("/tmp/o/upper"));
    CHECK(unlink("/tmp/o/lower/a"));
    CHECK(rmdir("/tmp/o/lower"));
    CHECK(rmdir("/tmp/o"));
    s->gone = now_us();
}

/* ---- a firewall of ten rules, by libnftables ---- */

static const char RULES[] = "table inet filter {\n"
                            "  chain input { type filter hook input priority 0; policy accept;\n"
                            "    tcp dport 1000 accept\n    tcp dport 1001 accept\n    tcp dport 1002 accept\n"
                            "    tcp dport 1003 accept\n    tcp dport 1004 accept\n    tcp dport 1005 accept\n"
                            "    tcp dport 1006 accept\n    tcp dport 1007 accept\n    tcp dport 1008 accept\n"
                            "    tcp dport 1009 accept\n  }\n}\n";

static void *(*nft_ctx_new)(unsigned);
static void (*nft_ctx_free)(void *);
static int (*nft_run_cmd_from_buffer)(void *, const char *);

static int load_nftables(void) {
    void *library = dlopen("libnftables.so.1", RTLD_NOW);
    if (library == NULL)
        return 0;
    *(void **)&nft_ctx_new = dlsym(library, "nft_ctx_new");
    *(void **)&nft_ctx_free = dlsym(library, "nft_ctx_free");
    *(void **)&nft_run_cmd_from_buffer = dlsym(library, "nft_run_cmd_from_buffer");
    return nft_ctx_new && nft_ctx_free && nft_run_cmd_from_buffer;
}

/* In a netns that is there already; what goes with it in the end is the ruleset. */
static void firewall(struct sample *s, int unused) {
    CHECK(unshare(CLONE_NEWNET));
    int fd = open_own(NET);
    enter(home[NET], NET);
    s->start = now_us();
    enter(fd, NET);
    void *context = nft_ctx_new(0);
    int failed = nft_run_cmd_from_buffer(context, RULES);
    nft_ctx_free(context);
    enter(home[NET], NET);
    s->ready = now_us();
    errno = EINVAL;
    CHECK(failed ? -1 : 0);
    close(fd);
    s->gone = now_us();
}

/* ---- cgroups ---- */

/* The v1 cgroups that this program is in: of the controller cpu and, to have used time counted, of cpuacct.  run.py says
 * where; the second is NULL where both are one. */
static const char *own_cgroup[2];

#define OURS "/pytest-isolation-floor"
#define EACH(n) for (int n = 0; n < 2 && own_cgroup[n] != NULL; n++)

static const char *in_cgroup(int n, const char *group, const char *file) {
    static char path[512];
    snprintf(path, sizeof path, "%s%s%s", own_cgroup[n], group, file);
    return path;
}

static void make_cgroup(void) {
    EACH(n) CHECK(mkdir(in_cgroup(n, OURS, ""), 0755));
    write_file(in_cgroup(0, OURS, "/cpu.shares"), "700");
}

static void move(const char *group, const char *file, const char *pid) {
    EACH(n) write_file(in_cgroup(n, group, file), pid);
}

static void remove_cgroup(void) { /* what has just died may be on its way out still */
    EACH(n) while (rmdir(in_cgroup(n, OURS, ""))) CHECK(errno == EBUSY ? 0 : -1);
}

/* On a machine that was quiet: a cgroup with shares, a process born in it, both gone. */
static void cgroup_born_inside(struct sample *s, int unused) {
    usleep(100000);
    s->start = now_us();
    make_cgroup();
    move(OURS, "/tasks", "0");
    pid_t pid = (pid_t)CHECK(vfork());
    if (pid == 0) {
        execve("/bin/true", TRUE_ARGV, environ);
        _exit(1);
    }
    move("", "/tasks", "0");
    await_end(pid, 0);
    s->ready = now_us();
    remove_cgroup();
    s->gone = now_us();
}

/* The same with a process that runs already: moved in by its pid, and back. */
static void cgroup_attach(struct sample *s, int unused) {
    static pid_t waiting;
    char pid[16];
    if (waiting == 0 && (waiting = (pid_t)CHECK(fork())) == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;)
            pause();
    }
    snprintf(pid, sizeof pid, "%d", waiting);
    usleep(100000);
    s->start = now_us();
    make_cgroup();
    move(OURS, "/cgroup.procs", pid);
    s->ready = now_us();
    move("", "/cgroup.procs", pid);
    remove_cgroup();
    s->gone = now_us();
}

/* ---- the server ---- */

static const struct {
    const char *name;
    void (*do_once)(struct sample *, int argument);
    int argument;
} JOBS[] = {{"netns", netns, 0},
            {"veth4", veth_pair, V4},
            {"veth6", veth_pair, V6},
            {"veth46", veth_pair, V4 | V6 | LINK_LOCAL},
            {"pidns", pid_namespace_of_one_command, 0},
            {"pidns_init", pid_namespace, 0},
            {"pidns_proc", pid_namespace, 1},
            {"uts", simple_namespace, UTS},
            {"ipc", simple_namespace, IPC},
            {"mount", simple_namespace, MNT},
            {"cgroup", simple_namespace, CGROUP},
            {"user", user_namespace, 0},
            {"overlay", overlay_fs, 0},
            {"run", run, 0},
            {"cgroup_cpu", cgroup_born_inside, 0},
            {"cgroup_attach", cgroup_attach, 0},
            {"call", call, NET},
            {"drain", drain, 2},
            {"firewall", firewall, 0}}; /* the last: it is left out where there is no libnftables */
enum { JOB_COUNT = sizeof JOBS / sizeof *JOBS };

static void serve(const char *line) {
    char name[32];
    long cycles = 1;
    double setup = 0, teardown = 0;
    int job = 0;
    if (sscanf(line, "cycles %ld %31s", &cycles, name) != 2 && sscanf(line, "%31s", name) != 1)
        return;
    while (job < JOB_COUNT && strcmp(JOBS[job].name, name) != 0)
        job++;
    if (job == JOB_COUNT) {
        printf("error no such job: %s\n", name);
        return;
    }
    while (cycles--) {
        struct sample s;
        JOBS[job].do_once(&s, JOBS[job].argument);
        setup += s.ready - s.start;
        teardown += s.gone - s.ready;
    }
    printf("ok %.2f %.2f\n", setup, teardown);
}

int main(void) {
    char line[128];
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int kind = 0; kind < KINDS; kind++)
        home[kind] = open_own(kind);
    CHECK(unshare(CLONE_NEWNET));
    other_netns = open_own(NET);
    enter(home[NET], NET);
    own_cgroup[0] = getenv("BENCH_CGROUP_CPU");
    own_cgroup[1] = getenv("BENCH_CGROUP_CPUACCT");
    printf("ready floor");
    for (int i = 0; i < JOB_COUNT - !load_nftables(); i++)
        if (own_cgroup[0] != NULL || strncmp(JOBS[i].name, "cgroup_", 7) != 0)
            printf(" %s", JOBS[i].name);
    printf("\n");
    while (fgets(line, sizeof line, stdin))
        serve(line);
    return 0;
}
