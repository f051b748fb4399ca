#!/bin/busybox sh
# The first process of a machine that tests bgctl: a client, two backends and the edge between them, in namespaces. A line that
# begins with @ is a result: a mode, and `ok` or what failed.
/bin/busybox --install -s /bin
export PATH=/opt:/bin
mkdir -p /proc /sys /dev /tmp /run /var/lib /etc/bgctl
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /run
for module in /modules/*.ko; do insmod "$module"; done

ip link set lo up
echo 1 > /proc/sys/net/ipv4/ip_forward
echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
net=0
for name in client blue green; do
  ip netns add $name
  ip link add $name type veth peer name eth0 netns $name
  echo 0 > /proc/sys/net/ipv6/conf/$name/accept_dad
  ip netns exec $name sh -c 'echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad'
  # On veth, a checksum is otherwise never finished, which XDP needs. Received packets pass NAPI, which redirection needs.
  ethtool -K $name tx off > /dev/null
  ip netns exec $name ethtool -K eth0 tx off gro on > /dev/null
  ip address add 10.0.$net.1/24 dev $name
  ip address add fd00:$net::1/64 dev $name
  ip link set $name up
  ip -n $name address add 10.0.$net.2/24 dev eth0
  ip -n $name address add fd00:$net::2/64 dev eth0
  ip -n $name link set lo up
  ip -n $name link set eth0 up
  ip -n $name route add default via 10.0.$net.1
  ip -n $name route add default via fd00:$net::1
  net=$((net + 1))
done
for colour in blue green; do
  mkdir /tmp/$colour
  echo $colour > /tmp/$colour/index.html
  ip netns exec $colour httpd -p 80 -h /tmp/$colour
done

service() {
  printf '[[deployments.shop.services]]\nname = "%s"\nvip = "%s"\nprotocol = "%s"\nblue = ["%s"]\ngreen = ["%s"]\n' "$@"
}
{
  echo '[deployments.shop]'
  service four 203.0.113.10:80 tcp 10.0.1.2:80 10.0.2.2:80
  echo 'preview = "203.0.113.10:9080"'
  service six '[2001:db8::10]:80' tcp '[fd00:1::2]:80' '[fd00:2::2]:80'
  echo 'preview = "[2001:db8::10]:9080"'
  service silent 203.0.113.10:53 udp 10.0.1.2:53 10.0.2.2:53
} > /etc/bgctl/bgctl.toml

# Who answers at a port of the VIPs.
at() { for vip in 203.0.113.10 '[2001:db8::10]'; do ip netns exec client wget -q -T 5 -O - "http://$vip:$1/" 2>&1; done | xargs; }
# Nothing listens at UDP port 53 of the backends. The second write fails if the ICMP error is about the VIP.
udp() {
  ip netns exec client bash -c 'exec 3<>/dev/udp/203.0.113.10/53; echo >&3; sleep 1; echo >&3' 2>&1 | grep -o 'Connection refused'
}
run() { bgctl "$@" > /tmp/output 2>&1 || fail "bgctl $*: $(tail -n 1 /tmp/output)"; }
is() { [ "$2" = "$3" ] || fail "$1: expected $2, got $3"; }
fail() { echo "@ $mode $*"; exit 1; }
# The life of an instance.
life() {
  run attach --mode $mode client blue green
  run apply
  is 'before a switch' 'blue blue' "$(at 80)"
  is 'preview' 'green green' "$(at 9080)"
  is 'ICMP error' 'Connection refused' "$(udp)"
  run switch shop
  is 'after a switch' 'green green' "$(at 80)"
  is 'preview after a switch' 'blue blue' "$(at 9080)"
  run rollback shop
  is 'after a rollback' 'blue blue' "$(at 80)"
  run attach --mode $mode client blue green
  is 'after an update in place' 'blue blue' "$(at 80)"
  run status
  run detach --all
  is 'pins' '' "$(ls /sys/fs/bpf)"
  echo "@ $mode ok"
}
echo
for mode in $(cat /modes); do
  (life)
  bgctl detach --all > /dev/null 2>&1
done
poweroff -f
