#!/usr/bin/env bash
# A Kubernetes for the tests: what a control plane and a node of it consist of. Nobody
# offers its servers ready-made to Debian 12, so they are built once from Debian's sources,
# into DIR/bin, in ten minutes and 3 GB that are freed again.
# usage: kubernetes.sh DIR
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
version=1.20.2

"$here/debian.sh" etcd=etcd-server etcdctl=etcd-client containerd=containerd runc=runc \
  busybox=busybox-static /usr/lib/cni/bridge=containernetworking-plugins iptables=iptables \
  ip=iproute2 kubectl=kubernetes-client mount=mount unshare=util-linux

mkdir -p "$1"
cd "$1"
exec 9> lock
flock 9
# It is moved there when it is complete.
[ ! -d bin ] || exit 0
rm -rf build
mkdir build
cd build

echo "Kubernetes $version: tools to build it with"
"$here/debian.sh" /usr/lib/go-1.19/bin/go=golang-1.19-go rsync=rsync make=make

echo "Kubernetes $version: sources"
# With lists of its own, since few hosts have those of sources.
mkdir -p lists/partial
apt-get update -qq
apt-get indextargets --format 'deb-src $(REPO_URI) $(RELEASE) $(COMPONENT)' \
  'Created-By: Packages' 'ORIGIN: Debian' > sources.list
with_sources=(-o "Dir::Etc::sourcelist=$PWD/sources.list" -o Dir::Etc::sourceparts=/dev/null
  -o "Dir::State::lists=$PWD/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
  -o APT::Sandbox::User=root)
apt-get "${with_sources[@]}" update -qq
apt-get "${with_sources[@]}" source -qq --download-only kubernetes
mkdir tree
tar -xf kubernetes_*"$version".orig.tar.gz --strip-components=1 -C tree
# The one it comes with crashes when it is built with a Go as new as this.
apt-get -o APT::Sandbox::User=root download -qq golang-github-modern-go-reflect2-dev
dpkg-deb -x golang-github-modern-go-reflect2-dev_*.deb reflect2
rm tree/vendor/github.com/modern-go/reflect2/*.{go,s}
cp reflect2/usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} \
  tree/vendor/github.com/modern-go/reflect2/

cat > version <<END
KUBE_GIT_COMMIT=unknown
KUBE_GIT_TREE_STATE=archive
KUBE_GIT_VERSION=v$version
KUBE_GIT_MAJOR=1
KUBE_GIT_MINOR=20
END
export PATH="/usr/lib/go-1.19/bin:$PATH" GOPROXY=off CGO_ENABLED=0
export KUBE_GIT_VERSION_FILE="$PWD/version"
mkdir bin
for program in kube-apiserver kube-controller-manager kube-scheduler kubelet; do
  echo "Kubernetes $version: building $program"
  nice make -C tree WHAT="cmd/$program" GOLDFLAGS="-s -w" > log 2>&1 || {
    tail -n 50 log >&2
    exit 1
  }
  mv "tree/_output/local/go/bin/$program" bin/
done
mv bin ..
cd ..
rm -rf build
echo "Kubernetes $version: built"
