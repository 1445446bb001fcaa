/*
 * What the floor needs of rtnetlink(7): requests packed by hand, and the kernel's answers noted as they come.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <netinet/icmp6.h>
#include <netinet/ip_icmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define CHECK(call) check((long)(call), #call)

static long check(long result, const char *call) {
    if (result < 0) {
        printf("error %s: %s\n", call, strerror(errno));
        exit(1);
    }
    return result;
}

/* ---- building requests ---- */

enum { LO = 1, ETH0 = 2 }; /* interface indices; in a netns of its own each end of a pair is number 2 */

static const struct family {
    int domain, protocol;
    const char *host, *guest;
    unsigned char prefix_length, address_bytes, address_flags, echo, echo_reply;
} FAMILY[] = {{AF_INET, IPPROTO_ICMP, "10.0.0.1", "10.0.0.2", 24, 4, 0, ICMP_ECHO, ICMP_ECHOREPLY},
              {AF_INET6, IPPROTO_ICMPV6, "fd00::1", "fd00::2", 64, 16, IFA_F_NODAD, ICMP6_ECHO_REQUEST, ICMP6_ECHO_REPLY}};
enum { V4 = 1, V6 = 2, LINK_LOCAL = 4 }; /* sets of them: bit n stands for FAMILY[n] */

struct request {
    char bytes[2048];
    size_t length;
    struct nlmsghdr *message; /* the one being built; several may stand in one request */
};

static void *append(struct request *r, size_t length) { /* the request starts out zeroed, and so does what is appended */
    void *place = r->bytes + r->length;
    r->length += NLMSG_ALIGN(length);
    r->message->nlmsg_len = (unsigned)(r->bytes + r->length - (char *)r->message);
    return place;
}

static void *begin_message(struct request *r, unsigned short type, unsigned short flags, size_t body) {
    r->message = (struct nlmsghdr *)(r->bytes + r->length);
    append(r, NLMSG_HDRLEN);
    r->message->nlmsg_type = type;
    r->message->nlmsg_flags = NLM_F_REQUEST | flags;
    return append(r, body);
}

static struct rtattr *attribute(struct request *r, unsigned short type, const void *value, size_t length) {
    struct rtattr *a = append(r, RTA_LENGTH(length));
    a->rta_type = type;
    a->rta_len = (unsigned short)RTA_LENGTH(length);
    if (length)
        memcpy(RTA_DATA(a), value, length);
    return a;
}

static void end_nested(struct request *r, struct rtattr *nest) {
    nest->rta_len = (unsigned short)(r->bytes + r->length - (char *)nest);
}

static void add_link_up(struct request *r, int index) {
    struct ifinfomsg *link = begin_message(r, RTM_NEWLINK, 0, sizeof *link);
    link->ifi_index = index;
    link->ifi_flags = link->ifi_change = IFF_UP;
}

static void add_name_and_queues(struct request *r) {
    int one = 1;
    attribute(r, IFLA_IFNAME, "eth0", sizeof "eth0");
    attribute(r, IFLA_NUM_TX_QUEUES, &one, sizeof one);
    attribute(r, IFLA_NUM_RX_QUEUES, &one, sizeof one);
}

/* A veth pair, each end created where it belongs: one here and already up, its peer in another netns and still down. */
static void add_veth(struct request *r, int netns_of_peer) {
    struct ifinfomsg *link = begin_message(r, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, sizeof *link);
    struct ifinfomsg peer = {.ifi_index = ETH0};
    link->ifi_index = ETH0;
    link->ifi_flags = link->ifi_change = IFF_UP;
    add_name_and_queues(r);
    struct rtattr *info = attribute(r, IFLA_LINKINFO, NULL, 0);
    attribute(r, IFLA_INFO_KIND, "veth", sizeof "veth");
    struct rtattr *data = attribute(r, IFLA_INFO_DATA, NULL, 0);
    struct rtattr *peer_info = attribute(r, VETH_INFO_PEER, &peer, sizeof peer);
    add_name_and_queues(r);
    attribute(r, IFLA_NET_NS_FD, &netns_of_peer, sizeof netns_of_peer);
    end_nested(r, peer_info);
    end_nested(r, data);
    end_nested(r, info);
}

static void add_address(struct request *r, const struct family *f, const char *text) {
    char address[16];
    inet_pton(f->domain, text, address);
    struct ifaddrmsg *a = begin_message(r, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, sizeof *a);
    a->ifa_family = (unsigned char)f->domain;
    a->ifa_prefixlen = f->prefix_length;
    a->ifa_flags = f->address_flags;
    a->ifa_index = ETH0;
    attribute(r, IFA_LOCAL, address, f->address_bytes);
    attribute(r, IFA_ADDRESS, address, f->address_bytes);
}

/* ---- talking to a netns ---- */

struct netns {
    int fd, rtnl;
    int acknowledged, link_told, link_running, address6_usable, link_local_usable; /* what the kernel has told us so far */
};

static void note(struct netns *ns, struct nlmsghdr *m) {
    if (m->nlmsg_type == NLMSG_ERROR) {
        errno = -((struct nlmsgerr *)NLMSG_DATA(m))->error;
        CHECK(errno ? -1 : 0);
        ns->acknowledged = 1;
    } else if (m->nlmsg_type == RTM_NEWLINK) {
        ns->link_told = 1;
        ns->link_running = ((struct ifinfomsg *)NLMSG_DATA(m))->ifi_flags & IFF_RUNNING; /* operstate is UP */
    } else if (m->nlmsg_type == RTM_NEWADDR) {
        struct ifaddrmsg *a = NLMSG_DATA(m);
        int usable = a->ifa_index == ETH0 && !(a->ifa_flags & IFA_F_TENTATIVE);
        ns->address6_usable |= usable && a->ifa_scope == RT_SCOPE_UNIVERSE;
        ns->link_local_usable |= usable && a->ifa_scope == RT_SCOPE_LINK;
    }
}

static void read_until(struct netns *ns, const int *told) {
    char buffer[8192];
    while (!*told) {
        int left = (int)CHECK(recv(ns->rtnl, buffer, sizeof buffer, 0));
        for (struct nlmsghdr *m = (void *)buffer; NLMSG_OK(m, left); m = NLMSG_NEXT(m, left))
            note(ns, m);
    }
}

static void send_and_await_ack(struct netns *ns, struct request *r) {
    r->message->nlmsg_flags |= NLM_F_ACK; /* of the last message; an error is told of any of them */
    ns->acknowledged = 0;
    CHECK(send(ns->rtnl, r->bytes, r->length, 0));
    read_until(ns, &ns->acknowledged);
}

/* Asking for a link makes the kernel work off its pending state changes: without it the first packet may be lost. */
static void confirm_eth0_is_up(struct netns *ns) {
    struct request r = {0};
    struct ifinfomsg *link = begin_message(&r, RTM_GETLINK, 0, sizeof *link);
    link->ifi_index = ETH0;
    CHECK(send(ns->rtnl, r.bytes, r.length, 0));
    read_until(ns, &ns->link_told);
    errno = ENETDOWN;
    CHECK(ns->link_running ? 0 : -1);
}
