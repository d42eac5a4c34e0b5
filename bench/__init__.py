"""``make bench``: Kvorum and etcd in turn, in one run, on this machine, as ratios. See README.md in this folder."""
