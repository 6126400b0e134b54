//! A node of the cluster: containerd and a kubelet that see files of their own where the
//! host's are not for tests to write.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::cluster::{HOST, program, until};
use super::daemon::Daemon;
use crate::image;

pub struct Node {
    /// What Kubernetes calls it.
    pub name: String,
    dir: PathBuf,
    kubelet: Daemon,
    _containerd: Daemon,
}

/// Runs `containerd` where it, and who follows it there, write in memory what they write
/// outside their directory, whatever they are told: under /var, and settings of the kernel.
const SEPARATELY: &str = r#"
set -e
memory=/run/$(basename "$1")
mkdir -p "$memory/directory" "$memory/var" "$memory/work"
mount --bind "$1" "$memory/directory"
mount -t overlay -o "lowerdir=/var,upperdir=$memory/var,workdir=$memory/work" none /var
mount --bind "$memory/directory" "$1"
for name in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops; do
  copy="$memory/${name#*/}"
  cat "/proc/sys/$name" > "$copy"
  mount --bind "$copy" "/proc/sys/$name"
done
exec containerd --config "$1/containerd.toml"
"#;

impl Node {
    pub async fn start(
        cluster: &Path,
        number: u8,
        labels: &str,
        kubeconfig: &Path,
        images: &[PathBuf],
    ) -> Self {
        let name = format!("n{number}");
        let dir = cluster.join(&name);
        std::fs::create_dir_all(dir.join("networks")).unwrap();
        let at = |name: &str| dir.join(name);
        std::fs::write(at("containerd.toml"), containerd_config(&dir)).unwrap();
        std::fs::write(at("networks/bridge.conflist"), network(number).to_string()).unwrap();
        // Names are nothing that anybody could find out about here.
        std::fs::write(at("resolv.conf"), "nameserver 127.0.0.1\n").unwrap();
        // A kubelet ends what it does not know in its cgroup.
        let cgroup = format!("dwell-test-{}", uuid::Uuid::new_v4());
        make_cgroups(&cgroup);
        let config = kubelet_config(&dir, 10250 + u16::from(number), &cgroup);
        std::fs::write(at("kubelet.json"), config.to_string()).unwrap();

        let mut containerd = Command::new("unshare");
        containerd
            .args(["--mount", "sh", "-c", SEPARATELY, "sh"])
            .arg(&dir);
        let containerd = Daemon::start(&dir, "containerd", containerd);
        until("containerd", async || {
            ctr(&dir, &["version"]).success().then_some(())
        })
        .await;
        for image in images {
            import(&dir, image);
        }

        let mut kubelet = Command::new("nsenter");
        kubelet
            .arg(format!("--mount=/proc/{}/ns/mnt", containerd.pid()))
            .arg(program("kubelet"))
            .arg(format!("--config={}", at("kubelet.json").display()))
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .arg(format!("--root-dir={}", at("kubelet").display()))
            .arg(format!("--cert-dir={}", at("certificates").display()))
            .arg(format!("--hostname-override={name}"))
            .arg(format!("--node-ip={HOST}"))
            .arg(format!("--node-labels={labels}"))
            .arg(format!(
                "--container-runtime-endpoint=unix://{}",
                socket(&dir).display()
            ))
            .arg("--container-runtime=remote");
        let kubelet = Daemon::start(&dir, "kubelet", kubelet);
        Self {
            name,
            dir,
            kubelet,
            _containerd: containerd,
        }
    }

    /// Have it know an image that `image::save` wrote.
    pub fn import(&self, archive: &Path) {
        import(&self.dir, archive);
    }

    /// As when it crashes, or the whole host does: nobody hears of this node any more.
    pub fn kubelet_dies(&self) {
        self.kubelet.dies();
    }

    pub fn kubelet_comes_back(&self) {
        self.kubelet.comes_back();
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("containerd.sock")
}

fn ctr(dir: &Path, words: &[&str]) -> std::process::ExitStatus {
    Command::new("ctr")
        .arg("--address")
        .arg(socket(dir))
        .args(["--namespace", "k8s.io"])
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap()
}

fn import(dir: &Path, archive: &Path) {
    let imported = ctr(dir, &["images", "import", archive.to_str().unwrap()]);
    assert!(imported.success(), "{}", archive.display());
}

/// One in each hierarchy that there is, of whichever version.
fn make_cgroups(path: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(root).unwrap();
    let hierarchies = hierarchies.map(|entry| entry.unwrap().path());
    for hierarchy in hierarchies.chain([root.to_owned()]) {
        if hierarchy.join("cgroup.procs").exists() && !hierarchy.is_symlink() {
            std::fs::create_dir_all(hierarchy.join(path)).unwrap();
        }
    }
}

fn containerd_config(dir: &Path) -> String {
    let at = |name: &str| dir.join(name).display().to_string();
    format!(
        r#"
version = 2
root = "{}"
state = "{}"
[grpc]
address = "{}"
[plugins."io.containerd.internal.v1.opt"]
path = "{}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
# Who may not do that could start nothing.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{}"
"#,
        at("containerd"),
        at("containerd-state"),
        socket(dir).display(),
        at("opt"),
        at("networks"),
    )
}

/// What holds the network of each pod.
pub const PAUSE: &str = "docker.io/dwell-test/pause:1";

/// Write the image of that name.
pub fn save_pause(busybox: &Path, archive: &Path) {
    let process = json!({"Entrypoint": ["/bin/sleep", "infinity"]});
    image::save(busybox, PAUSE, image::architecture(), &process, archive);
}

/// Pods reach the host, and whatever it reaches.
fn network(node: u8) -> Value {
    let addresses = json!({
        "type": "host-local",
        "ranges": [[{"subnet": format!("10.88.{node}.0/24")}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    });
    json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge", "bridge": format!("pods-{node}"), "isGateway": true,
                "ipMasq": true, "ipam": addresses,
            },
        ],
    })
}

fn kubelet_config(dir: &Path, port: u16, cgroup: &str) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "port": port,
        "healthzPort": 0,
        "readOnlyPort": 0,
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{cgroup}"),
        "failSwapOn": false,
        "oomScoreAdj": 0,
        "makeIPTablesUtilChains": false,
        "resolvConf": dir.join("resolv.conf"),
        "volumePluginDir": dir.join("volume-plugins"),
        // Quick to tell how it is.
        "nodeStatusUpdateFrequency": "1s",
        "nodeLeaseDurationSeconds": 4,
        // However full the disk is.
        "evictionHard": {"memory.available": "1Mi"},
        "imageGCHighThresholdPercent": 100,
    })
}
