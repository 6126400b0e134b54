//! Network namespaces, and cables between them. They go with the process that asked for
//! them, however that ends.

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A host of its own, as far as the network goes.
pub struct Namespace {
    /// It reads from us until we are gone.
    holder: Child,
}

impl Namespace {
    pub fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo there; read -r word"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare is part of util-linux");
        let mut word = String::new();
        let said = holder.stdout.take().unwrap();
        BufReader::new(said).read_line(&mut word).unwrap();
        assert_eq!(word, "there\n", "a network namespace takes root's rights");
        let namespace = Self { holder };
        namespace.has(&["ip", "link", "set", "lo", "up"]);
        namespace
    }

    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// The words that another program's are put behind to have it run there.
    pub fn enter(&self) -> [String; 2] {
        let pid = self.pid();
        ["nsenter".to_owned(), format!("--net=/proc/{pid}/ns/net")]
    }

    /// Have these words succeed there.
    pub fn has(&self, words: &[&str]) {
        let enter = self.enter();
        let enter: Vec<&str> = enter.iter().map(String::as_str).collect();
        run(&[&enter, words].concat());
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Four addresses that nobody else has here: ours is the first to be used, the other
/// end's the second.
pub struct Subnet {
    number: u16,
    _claim: UnixListener,
}

impl Subnet {
    pub fn new() -> Self {
        let claimed = (0..1 << 14).find_map(|number| {
            let name = format!("dwell-test-subnet-{number}");
            let name = SocketAddr::from_abstract_name(name).unwrap();
            let claim = UnixListener::bind_addr(&name).ok()?;
            let subnet = Self {
                number,
                _claim: claim,
            };
            // One that another test had may go only with the last of its processes.
            let is_free = !Path::new("/sys/class/net").join(subnet.device()).exists();
            is_free.then_some(subnet)
        });
        claimed.expect("some are free")
    }

    fn device(&self) -> String {
        format!("dwtest{}", self.number)
    }

    fn address(&self, last: u8) -> Ipv4Addr {
        let [high, low] = (self.number << 2).to_be_bytes();
        Ipv4Addr::new(10, 213, high, low + last)
    }

    pub fn ours(&self) -> Ipv4Addr {
        self.address(1)
    }

    pub fn theirs(&self) -> Ipv4Addr {
        self.address(2)
    }

    /// A cable from here to `eth0` of `there`.
    pub fn connect(&self, there: &Namespace) {
        self.lay(run, &self.device(), there);
    }

    /// A cable from `eth1` of `here` to `eth0` of `there`.
    pub fn connect_from(&self, here: &Namespace, there: &Namespace) {
        self.lay(|words| here.has(words), "eth1", there);
    }

    fn lay(&self, here: impl Fn(&[&str]), device: &str, there: &Namespace) {
        let (ours, theirs) = (
            format!("{}/30", self.ours()),
            format!("{}/30", self.theirs()),
        );
        let pid = there.pid().to_string();
        let cable = ["type", "veth", "peer", "name", "eth0", "netns", &pid];
        here(&[&["ip", "link", "add", device][..], &cable].concat());
        here(&["ip", "address", "add", &ours, "dev", device]);
        here(&["ip", "link", "set", device, "up"]);
        there.has(&["ip", "address", "add", &theirs, "dev", "eth0"]);
        there.has(&["ip", "link", "set", "eth0", "up"]);
    }
}

impl Drop for Subnet {
    fn drop(&mut self) {
        // Its other end may have taken it along.
        let device = self.device();
        let taken_up = Command::new("ip")
            .args(["link", "delete", &device])
            .output();
        drop(taken_up);
    }
}

pub fn run(words: &[&str]) {
    let (program, rest) = words.split_first().unwrap();
    let done = Command::new(program).args(rest).output();
    let done = done.unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{words:?}: {said}");
}
