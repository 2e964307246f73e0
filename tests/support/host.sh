#!/bin/sh
# Process 1 of a host that a test plays: namespaces of its own are entered already, file systems are made its own here.
#   host.sh NAME STATE HIERARCHY...
# HIERARCHY is `folder:type:options` of a cgroup hierarchy. Says "ready" and then reaps what is left to it.
set -eu
name=$1 state=$2
shift 2
mount --make-rprivate /
# The machine's own clusters are not this host's: what they have mounted would be found below the mounts made here.
awk '$5 ~ "^/(var/lib|run|tmp)/" {print $5}' /proc/self/mountinfo | sort -r | while read -r point; do
  umount -l "$point"
done
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /sys/fs/cgroup
for hierarchy; do
  folder=${hierarchy%%:*} rest=${hierarchy#*:}
  mkdir -p "$folder"
  mount -t "${rest%%:*}" -o "${rest#*:}" cgroup "$folder"
done
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
mkdir -p /run/lock /run/netns
# All of it, so that nothing that is done on this host, not even unmounting, reaches the machine's own.
mkdir "$state/kernelet"
mount --bind "$state" /var/lib
hostname "$name"
ip link set lo up
echo ready
while :; do
  sleep 1000 &
  wait $!
done
