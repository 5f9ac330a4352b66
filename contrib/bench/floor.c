/* The floor of the benchmark: the life of one container by bare system calls, as little as can do the same work.
 *
 * Usage: floor ROOTFS WORK FILTER SYNCS HIERARCHY...
 *
 * ROOTFS is the lower directory of the overlay, WORK a directory on the same disk for upper and work directories and the
 * journal, FILTER a file with the seccomp program (struct sock_filter, packed), SYNCS the number of durable writes of one
 * life, HIERARCHY a directory with the controllers that the container joins, "/sys/fs/cgroup/pids" and so on.
 *
 * It reads commands from stdin and answers each with one line on stdout, "ok":
 *   r  run: create, start, exit and delete of `true`
 *   h  hold: create and start `sleep 100000` and keep it;  x  exec `true` in the held one;  k  kill and delete it
 *   i  one more idle `sleep 100000`, kept until the end
 * The container: new mount, pid, ipc, uts, cgroup and network namespaces, the mounts, device nodes, masked and read-only
 * paths, capabilities and filter of Docker's default profile; pipes for stdout and stderr, read to their end.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/mount.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_HIERARCHIES 16
#define CAPABILITIES 0xa80425fbULL /* Docker's default set */

static const char *rootfs, *work;
static struct sock_fprog filter;
static int syncs, hierarchies, journal, serial;
static const char *hierarchy[MAX_HIERARCHIES];
static char group[32];
static char run_directory[] = "/dev/shm/wherry-floor-XXXXXX";

struct life {
	char name[32];
	char upper[512], scratch[512];
	pid_t pid;
	int pidfd, start, report, out, err;
};

static void fail(const char *what)
{
	fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
	_exit(99);
}

static long must(long result, const char *what)
{
	if (result < 0)
		fail(what);
	return result;
}

static void put(const char *path, const char *text)
{
	int fd = must(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644), path);
	if (write(fd, text, strlen(text)) < 0)
		fail(path);
	close(fd);
}

static void record(int count)
{
	static char row[512];
	while (count-- > 0) {
		must(write(journal, row, sizeof row), "journal");
		must(fdatasync(journal), "fdatasync");
	}
}

/* ---- the child ---------------------------------------------------------------------------------------------------- */

static int filesystem(const char *type, const char *const *options, unsigned attributes)
{
	int fs = must(syscall(SYS_fsopen, type, FSOPEN_CLOEXEC), type);
	for (; options && *options; options += 2)
		must(syscall(SYS_fsconfig, fs, *options[1] ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, options[0],
			     *options[1] ? options[1] : NULL, 0), options[0]);
	must(syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0), "fsconfig create");
	int tree = must(syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, attributes), "fsmount");
	close(fs);
	return tree;
}

static void place(int tree, const char *target)
{
	must(syscall(SYS_move_mount, tree, "", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH), target);
	close(tree);
}

static void bind(const char *source, const char *target, unsigned long long attributes)
{
	int tree = must(syscall(SYS_open_tree, AT_FDCWD, source, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC), source);
	struct mount_attr attr = {.attr_set = attributes};
	if (attributes)
		must(syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attr, sizeof attr), "mount_setattr");
	place(tree, target);
}

static void node(const char *path, int major_number, int minor_number)
{
	must(mknod(path, S_IFCHR | 0666, makedev(major_number, minor_number)), path);
	must(chmod(path, 0666), path);
}

static void set_mounts(struct life *life)
{
	const unsigned no = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
	char path[600];
	must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "make / private");
	const char *overlay[] = {"source", "overlay", "lowerdir", rootfs, "upperdir", life->upper, "workdir", life->scratch,
				 "volatile", "", NULL};
	int root = filesystem("overlay", overlay, 0);
	must(syscall(SYS_move_mount, root, "", AT_FDCWD, rootfs, MOVE_MOUNT_F_EMPTY_PATH), "root");
	must(fchdir(root), "root");
	close(root);
	place(filesystem("proc", NULL, no), "proc");
	const char *dev[] = {"mode", "755", "size", "65536k", NULL};
	place(filesystem("tmpfs", dev, MOUNT_ATTR_NOSUID), "dev");
	must(mkdir("dev/pts", 0755), "pts");
	must(mkdir("dev/shm", 01777), "shm");
	must(mkdir("dev/mqueue", 01777), "mqueue");
	const char *pts[] = {"ptmxmode", "0666", "mode", "0620", "gid", "5", NULL};
	place(filesystem("devpts", pts, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC), "dev/pts");
	place(filesystem("sysfs", NULL, no | MOUNT_ATTR_RDONLY), "sys");
	place(filesystem("mqueue", NULL, no), "dev/mqueue");
	const char *shm[] = {"mode", "1777", "size", "67108864", NULL};
	place(filesystem("tmpfs", shm, no), "dev/shm");
	const char *groups[] = {"mode", "755", NULL};
	place(filesystem("tmpfs", groups, no), "sys/fs/cgroup");
	for (int i = 0; i < hierarchies; i++) {
		char source[600];
		const char *base = strrchr(hierarchy[i], '/') + 1;
		snprintf(path, sizeof path, "sys/fs/cgroup/%s", base);
		must(mkdir(path, 0755), path);
		snprintf(source, sizeof source, "%s/%s/%s", hierarchy[i], group, life->name);
		bind(source, path, no | MOUNT_ATTR_RDONLY);
	}
	struct mount_attr read_only = {.attr_set = MOUNT_ATTR_RDONLY};
	must(syscall(SYS_mount_setattr, AT_FDCWD, "sys/fs/cgroup", 0, &read_only, sizeof read_only), "cgroup ro");
	const char *files[] = {"hosts", "hostname", "resolv.conf"};
	for (int i = 0; i < 3; i++) {
		char source[600];
		snprintf(source, sizeof source, "%s/%s/%s", run_directory, life->name, files[i]);
		snprintf(path, sizeof path, "etc/%s", files[i]);
		bind(source, path, 0);
	}
	node("dev/null", 1, 3);
	node("dev/zero", 1, 5);
	node("dev/full", 1, 7);
	node("dev/random", 1, 8);
	node("dev/urandom", 1, 9);
	node("dev/tty", 5, 0);
	must(symlink("pts/ptmx", "dev/ptmx"), "ptmx");
	must(symlink("/proc/self/fd", "dev/fd"), "fd");
	must(symlink("/proc/self/fd/0", "dev/stdin"), "stdin");
	must(symlink("/proc/self/fd/1", "dev/stdout"), "stdout");
	must(symlink("/proc/self/fd/2", "dev/stderr"), "stderr");
	must(symlink("/proc/kcore", "dev/core"), "core");
}

static void hide_paths(void)
{
	static const char *masked[] = {"proc/acpi", "proc/asound", "proc/interrupts", "proc/kcore", "proc/keys",
		"proc/latency_stats", "proc/sched_debug", "proc/scsi", "proc/timer_list", "proc/timer_stats",
		"sys/devices/virtual/powercap", "sys/firmware"};
	static const char *read_only[] = {"proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"};
	const char *empty[] = {"size", "4k", "mode", "755", NULL};
	int directory = -1;
	for (size_t i = 0; i < sizeof masked / sizeof *masked; i++) {
		struct stat status;
		if (stat(masked[i], &status) < 0)
			continue;
		if (!S_ISDIR(status.st_mode)) {
			bind("dev/null", masked[i], 0);
			continue;
		}
		if (directory < 0) {
			directory = filesystem("tmpfs", empty, MOUNT_ATTR_RDONLY);
			place(dup(directory), masked[i]);
		} else {
			int copy = must(syscall(SYS_open_tree, directory, "", OPEN_TREE_CLONE | AT_EMPTY_PATH), "open_tree");
			place(copy, masked[i]);
		}
	}
	for (size_t i = 0; i < sizeof read_only / sizeof *read_only; i++)
		if (access(read_only[i], F_OK) == 0)
			bind(read_only[i], read_only[i], MOUNT_ATTR_RDONLY);
}

static void drop_privileges(void)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2] = {0};
	for (int cap = 0; cap <= CAP_LAST_CAP; cap++)
		if (!(CAPABILITIES >> cap & 1) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0 && errno != EINVAL)
			fail("PR_CAPBSET_DROP");
	if (filter.len)
		must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_LOG, &filter), "seccomp");
	must(syscall(SYS_setgroups, 0, NULL), "setgroups");
	must(syscall(SYS_setresgid, 0, 0, 0), "setresgid");
	must(syscall(SYS_setresuid, 0, 0, 0), "setresuid");
	data[0].effective = data[0].permitted = (uint32_t)CAPABILITIES;
	must(syscall(SYS_capset, &header, data), "capset");
}

static void become(char *const argv[])
{
	static char *const environment[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", NULL};
	drop_privileges();
	must(chdir("/"), "chdir");
	execve("/bin/busybox", argv, environment);
	fail("execve");
}

static void container(struct life *life, int tasks[], int start, int report, int out, int err, char *const argv[])
{
	char byte = 'c';
	sigset_t none;
	for (int i = 0; i < hierarchies; i++)
		must(write(tasks[i], "0", 1), "tasks");
	int null = open("/dev/null", O_RDONLY);
	dup2(null, 0);
	dup2(out, 1);
	must(unshare(CLONE_NEWCGROUP), "unshare cgroup");
	put("/proc/self/oom_score_adj", "0");
	must(setsid(), "setsid");
	must(sethostname(life->name, strlen(life->name)), "sethostname");
	set_mounts(life);
	put("proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
	put("proc/sys/net/ipv4/ping_group_range", "0 2147483647");
	hide_paths();
	must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
	must(umount2(".", MNT_DETACH), "umount2");
	must(chdir("/"), "chdir");
	syscall(SYS_keyctl, 1, life->name);
	umask(022);
	must(write(report, &byte, 1), "report");
	if (read(start, &byte, 1) != 1)
		_exit(0);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	dup2(err, 2);
	become(argv);
}

/* ---- the parent --------------------------------------------------------------------------------------------------- */

static void create(struct life *life, char *const argv[])
{
	static const char *files[] = {"hosts", "hostname", "resolv.conf", "config.json"};
	char path[600];
	int tasks[MAX_HIERARCHIES], start[2], report[2], out[2], err[2];
	snprintf(life->name, sizeof life->name, "floor-%d", ++serial);
	record(syncs > 0);
	snprintf(path, sizeof path, "%s/%s", work, life->name);
	must(mkdir(path, 0700), path);
	snprintf(life->upper, sizeof life->upper, "%s/%s/fs", work, life->name);
	snprintf(life->scratch, sizeof life->scratch, "%s/%s/work", work, life->name);
	must(mkdir(life->upper, 0755), "upper");
	must(mkdir(life->scratch, 0700), "work");
	snprintf(path, sizeof path, "%s/%s", run_directory, life->name);
	must(mkdir(path, 0700), path);
	for (int i = 0; i < 4; i++) {
		snprintf(path, sizeof path, "%s/%s/%s", run_directory, life->name, files[i]);
		put(path, i < 3 ? "127.0.0.1 localhost\n" : "{}");
	}
	for (int i = 0; i < hierarchies; i++) {
		snprintf(path, sizeof path, "%s/%s/%s", hierarchy[i], group, life->name);
		must(mkdir(path, 0755), path);
		if (strstr(hierarchy[i], "devices")) {
			static const char *rules[] = {"a", "c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm",
				"c 1:9 rwm", "c 5:0 rwm", "c 5:1 rwm", "c 5:2 rwm", "c 136:* rwm"};
			for (size_t rule = 0; rule < sizeof rules / sizeof *rules; rule++) {
				char file[700];
				snprintf(file, sizeof file, "%s/devices.%s", path, rule ? "allow" : "deny");
				put(file, rules[rule]);
			}
		}
		strcat(path, "/tasks");
		tasks[i] = must(open(path, O_WRONLY | O_CLOEXEC), path);
	}
	must(pipe2(start, O_CLOEXEC), "pipe");
	must(pipe2(report, O_CLOEXEC), "pipe");
	must(pipe2(out, O_CLOEXEC), "pipe");
	must(pipe2(err, O_CLOEXEC), "pipe");
	struct clone_args args = {
		.flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET | CLONE_PIDFD | CLONE_CLEAR_SIGHAND,
		.pidfd = (uint64_t)(uintptr_t)&life->pidfd,
		.exit_signal = SIGCHLD,
	};
	life->pid = must(syscall(SYS_clone3, &args, sizeof args), "clone3");
	if (life->pid == 0)
		container(life, tasks, start[0], report[1], out[1], err[1], argv);
	for (int i = 0; i < hierarchies; i++)
		close(tasks[i]);
	close(start[0]);
	close(report[1]);
	close(out[1]);
	close(err[1]);
	life->start = start[1];
	life->report = report[0];
	life->out = out[0];
	life->err = err[0];
	char byte;
	if (read(life->report, &byte, 1) != 1)
		fail("child");
}

static void release(struct life *life)
{
	char byte = 's';
	record(syncs > 1);
	must(write(life->start, &byte, 1), "start");
	if (read(life->report, &byte, 1) != 0) /* the end of the pipe: execve closed it */
		fail("exec");
	close(life->start);
	close(life->report);
}

static void finish(struct life *life)
{
	static const char *files[] = {"hosts", "hostname", "resolv.conf", "config.json"};
	char path[600], buffer[256];
	siginfo_t info;
	while (read(life->out, buffer, sizeof buffer) > 0 || read(life->err, buffer, sizeof buffer) > 0)
		;
	must(waitid(P_PIDFD, life->pidfd, &info, WEXITED), "waitid");
	record(syncs > 2 ? syncs - 2 : 0);
	close(life->out);
	close(life->err);
	close(life->pidfd);
	for (int i = 0; i < hierarchies; i++) {
		snprintf(path, sizeof path, "%s/%s/%s", hierarchy[i], group, life->name);
		must(rmdir(path), path);
	}
	snprintf(path, sizeof path, "%s/work/incompat/volatile/dirty", life->scratch);
	must(unlink(path), path);
	snprintf(path, sizeof path, "%s/work/incompat/volatile", life->scratch);
	must(rmdir(path), path);
	snprintf(path, sizeof path, "%s/work/incompat", life->scratch);
	must(rmdir(path), path);
	snprintf(path, sizeof path, "%s/work", life->scratch);
	must(rmdir(path), path);
	must(rmdir(life->scratch), "work");
	snprintf(path, sizeof path, "%s/etc", life->upper);
	must(rmdir(life->upper), life->upper);
	snprintf(path, sizeof path, "%s/%s", work, life->name);
	must(rmdir(path), path);
	for (int i = 0; i < 4; i++) {
		snprintf(path, sizeof path, "%s/%s/%s", run_directory, life->name, files[i]);
		must(unlink(path), path);
	}
	snprintf(path, sizeof path, "%s/%s", run_directory, life->name);
	must(rmdir(path), path);
}

static void execute(struct life *life)
{
	char *const argv[] = {"true", NULL};
	char path[600], byte;
	int tasks[MAX_HIERARCHIES], report[2], status;
	for (int i = 0; i < hierarchies; i++) {
		snprintf(path, sizeof path, "%s/%s/%s/tasks", hierarchy[i], group, life->name);
		tasks[i] = must(open(path, O_WRONLY | O_CLOEXEC), path);
	}
	must(pipe2(report, O_CLOEXEC), "pipe");
	int own = must(open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC), "ns/pid");
	must(setns(life->pidfd, CLONE_NEWPID), "setns pid");
	pid_t pid = must(fork(), "fork");
	if (pid == 0) {
		for (int i = 0; i < hierarchies; i++)
			must(write(tasks[i], "0", 1), "tasks");
		must(setns(life->pidfd, CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET | CLONE_NEWCGROUP | CLONE_NEWNS), "setns");
		must(setsid(), "setsid");
		become(argv);
	}
	must(setns(own, CLONE_NEWPID), "setns back");
	close(own);
	close(report[1]);
	for (int i = 0; i < hierarchies; i++)
		close(tasks[i]);
	if (read(report[0], &byte, 1) != 0)
		fail("exec");
	close(report[0]);
	must(waitpid(pid, &status, 0), "waitpid");
	if (status)
		fail("exec status");
}

static void end(struct life *life)
{
	must(kill(life->pid, SIGKILL), "kill");
	finish(life);
}

int main(int argc, char **argv)
{
	static char *const yes[] = {"true", NULL}, *const idle[] = {"sleep", "100000", NULL};
	static struct life held, kept[1024];
	char path[600];
	int count = 0, failed = 0;
	if (argc < 5)
		return 2;
	rootfs = argv[1];
	work = argv[2];
	syncs = atoi(argv[4]);
	snprintf(group, sizeof group, "wherry-floor-%d", getpid());
	int fd = must(open(argv[3], O_RDONLY | O_CLOEXEC), argv[3]);
	struct stat status;
	must(fstat(fd, &status), argv[3]);
	filter.len = status.st_size / sizeof(struct sock_filter);
	filter.filter = malloc(status.st_size);
	if (read(fd, filter.filter, status.st_size) != status.st_size)
		fail(argv[3]);
	close(fd);
	if (!mkdtemp(run_directory))
		fail(run_directory);
	snprintf(path, sizeof path, "%s/journal", work);
	journal = must(open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600), path);
	for (int i = 5; i < argc && hierarchies < MAX_HIERARCHIES; i++) {
		hierarchy[hierarchies++] = argv[i];
		snprintf(path, sizeof path, "%s/%s", argv[i], group);
		if (mkdir(path, 0755) < 0 && errno != EEXIST)
			fail(path);
	}
	for (char line[16]; fgets(line, sizeof line, stdin);) {
		switch (line[0]) {
		case 'r': {
			struct life life;
			create(&life, yes);
			release(&life);
			finish(&life);
			break;
		}
		case 'h':
			create(&held, idle);
			release(&held);
			break;
		case 'x':
			execute(&held);
			break;
		case 'k':
			end(&held);
			break;
		case 'i':
			if (count == 1024)
				fail("too many");
			create(&kept[count], idle);
			release(&kept[count++]);
			break;
		}
		puts("ok");
		fflush(stdout);
	}
	while (count > 0)
		end(&kept[--count]);
	for (int i = 0; i < hierarchies; i++) {
		snprintf(path, sizeof path, "%s/%s", hierarchy[i], group);
		failed |= rmdir(path);
	}
	snprintf(path, sizeof path, "%s/journal", work);
	unlink(path);
	rmdir(run_directory);
	return failed ? 1 : 0;
}
