/* Pipes, sockets and what waits for them. */
#include "case.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>

#define TOTAL (1 << 20)

static void send_all(int fd)
{
	static unsigned char buffer[7001];

	for (size_t sent = 0; sent < TOTAL;) {
		size_t size = TOTAL - sent < sizeof buffer ? TOTAL - sent : sizeof buffer;

		for (size_t i = 0; i < size; i++)
			buffer[i] = (unsigned char)((sent + i) * 2654435761u >> 11);
		ssize_t count = write(fd, buffer, size);

		CHECK(count > 0);
		sent += (size_t)count;
	}
}

static void receive_all(int fd)
{
	static unsigned char buffer[5003];
	size_t received = 0;
	ssize_t count;

	while ((count = read(fd, buffer, sizeof buffer)) > 0) {
		for (ssize_t i = 0; i < count; i++)
			CHECK(buffer[i] == (unsigned char)((received + (size_t)i) * 2654435761u >> 11));
		received += (size_t)count;
	}
	CHECK(count == 0 && received == TOTAL);
}

static void transfer(int from, int to)
{
	pid_t pid = fork();

	if (pid == 0) {
		close(to);
		send_all(from);
		_exit(0);
	}
	close(from);
	receive_all(to);
	wait_for(pid);
}

static void pipes(void)
{
	int fds[2];

	CHECK(pipe(fds) == 0);
	transfer(fds[1], fds[0]);
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
	transfer(fds[1], fds[0]);
}

static int loopback(int type, struct sockaddr_in *address)
{
	struct ifreq request = { .ifr_name = "lo" };
	socklen_t length = sizeof *address;
	int fd = socket(AF_INET, type, 0);

	CHECK(fd >= 0 && ioctl(fd, SIOCGIFFLAGS, &request) == 0);
	if (!(request.ifr_flags & IFF_UP)) {
		request.ifr_flags |= IFF_UP;
		if (ioctl(fd, SIOCSIFFLAGS, &request) != 0)
			SKIP("the loopback device is down");
	}
	*address = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	CHECK(bind(fd, (struct sockaddr *)address, length) == 0);
	CHECK(getsockname(fd, (struct sockaddr *)address, &length) == 0);
	return fd;
}

static void tcp(void)
{
	struct sockaddr_in address;
	int listener = loopback(SOCK_STREAM, &address), client, server;

	CHECK(listen(listener, 1) == 0 && (client = socket(AF_INET, SOCK_STREAM, 0)) >= 0);
	CHECK(connect(client, (struct sockaddr *)&address, sizeof address) == 0);
	CHECK((server = accept(listener, NULL, NULL)) >= 0);
	transfer(client, server);
}

static void udp(void)
{
	struct sockaddr_in address;
	int server = loopback(SOCK_DGRAM, &address), client = socket(AF_INET, SOCK_DGRAM, 0), number;

	CHECK(connect(client, (struct sockaddr *)&address, sizeof address) == 0);
	for (int i = 0; i < 200; i++)
		CHECK(send(client, &i, sizeof i, 0) == sizeof i && recv(server, &number, sizeof number, 0) == sizeof number &&
		      number == i);
}

static void events(void)
{
	int poll_fd = epoll_create1(0), event_fd = eventfd(0, 0), signal_fd, found = 0;
	struct epoll_event event = { .events = EPOLLIN, .data.u32 = 1 };
	struct signalfd_siginfo info;
	uint64_t count;
	sigset_t set;
	pid_t pid, parent = getpid();

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal_fd = signalfd(-1, &set, 0);
	CHECK(epoll_ctl(poll_fd, EPOLL_CTL_ADD, event_fd, &event) == 0);
	event.data.u32 = 2;
	CHECK(epoll_ctl(poll_fd, EPOLL_CTL_ADD, signal_fd, &event) == 0);
	CHECK(epoll_wait(poll_fd, &event, 1, 10) == 0);
	pid = fork();
	if (pid == 0) {
		count = 5;
		CHECK(write(event_fd, &count, 8) == 8 && kill(parent, SIGUSR1) == 0);
		_exit(0);
	}
	while (found != 3) {
		CHECK(epoll_wait(poll_fd, &event, 1, 10000) == 1);
		found |= (int)event.data.u32;
		if (event.data.u32 == 1)
			CHECK(read(event_fd, &count, 8) == 8 && count == 5);
		else
			CHECK(read(signal_fd, &info, sizeof info) == sizeof info && info.ssi_pid == (unsigned)pid);
	}
	wait_for(pid);
}

const struct test_case channel_cases[] = {
	{ "channel-pipes", pipes }, { "channel-tcp", tcp }, { "channel-udp", udp }, { "channel-events", events },
	{ NULL, NULL },
};
