//! A browser of its own for each test, and what a person does in one.

use std::io::{BufRead, BufReader};
use std::ops::Deref;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use thirtyfour::prelude::*;
use thirtyfour::{ChromiumLikeCapabilities, LoggingPrefsLogLevel};

use crate::far::address;
use crate::harness::{PATIENCE, processes, signal};
use crate::network::{Namespace, Subnet};
use crate::relay::Relay;

const ALWAYS: [&str; 11] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-3d-apis",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1000",
];

/// As some browsers come, and all can be set.
fn no_third_party_cookies() -> Value {
    json!({"profile.cookie_controls_mode": 1})
}

/// On a host of its own: where cables come and go, as they do here, a browser drops its
/// connections.
pub struct Browser {
    /// None once it was closed.
    driver: Option<WebDriver>,
    chromedriver: Child,
    /// In the environment of all that belongs to it.
    mark: String,
    dir: TempDir,
    _host: Namespace,
    _relays: Vec<Relay>,
    _subnet: Subnet,
}

impl Browser {
    /// One that reaches nothing but these origins, which are served here.
    pub async fn open(origins: &[&str], flags: &[String]) -> Self {
        let (host, subnet) = (Namespace::new(), Subnet::new());
        // Its address of this kind would come seconds after the cable.
        let none = "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6";
        host.has(&["sh", "-c", none]);
        subnet.connect(&host);
        let (near, far) = (subnet.ours(), subnet.theirs());
        let mut resolved = "--host-resolver-rules=".to_owned();
        let mut relays = Vec::new();
        for origin in origins {
            let (_, authority) = origin.split_once("://").unwrap();
            let (_, port) = authority.rsplit_once(':').unwrap();
            let relay = Relay::at(near).await;
            relay.lead_to(address(&format!("http://127.0.0.1:{port}")));
            resolved += &format!("MAP {authority} {}, ", relay.at);
            relays.push(relay);
        }
        resolved += &format!("MAP * ~NOTFOUND, EXCLUDE {near}");

        let dir = tempfile::tempdir().unwrap();
        let mark = format!("DWELL_TEST_BROWSER={}", dir.path().display());
        let (name, value) = mark.split_once('=').unwrap();
        let [program, word] = host.enter();
        let mut chromedriver = Command::new(program)
            .args([&word, "chromedriver", "--port=0"])
            .arg(format!("--allowed-ips={near}"))
            .env(name, value)
            .env("TMPDIR", dir.path())
            .env("HOME", dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("nsenter is part of util-linux");
        let said = BufReader::new(chromedriver.stdout.take().unwrap());
        let mut browser = Self {
            driver: None,
            chromedriver,
            mark,
            dir,
            _host: host,
            _relays: relays,
            _subnet: subnet,
        };
        let mut lines = said.lines().map_while(Result::ok);
        let port = lines.find_map(|line| {
            let (_, port) = line.split_once("started successfully on port ")?;
            port.trim_end_matches('.').parse::<u16>().ok()
        });
        let port = port.expect("chromedriver is installed by `make setup-browser`");
        // What it says later, nobody needs; that it can be said, it does.
        std::thread::spawn(move || lines.for_each(drop));

        let mut wanted = DesiredCapabilities::chrome();
        let own = [
            format!("--user-data-dir={}", browser.file("profile")),
            format!("--log-net-log={}", browser.file("spoken.json")),
            resolved,
        ];
        let always = ALWAYS.iter().map(|flag| (*flag).to_owned());
        for flag in always.chain(own).chain(flags.iter().cloned()) {
            wanted.add_arg(&flag).unwrap();
        }
        wanted
            .add_experimental_option("prefs", no_third_party_cookies())
            .unwrap();
        wanted
            .set_browser_log_level(LoggingPrefsLogLevel::All)
            .unwrap();
        let driver = WebDriver::new(format!("http://{far}:{port}"), wanted).await;
        browser.driver = Some(driver.unwrap());
        browser
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// The first answer that there is.
    pub async fn until<T>(&self, what: &str, ask: impl AsyncFn(&Self) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(answer) = ask(self).await {
                return answer;
            }
            if began.elapsed() > PATIENCE {
                panic!("there is no {what}\n{}", self.picture().await);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Until something is shown there, and was clicked.
    pub async fn click(&self, selector: &str) {
        let clicked = async |browser: &Self| {
            let element = browser.find(By::Css(selector)).await.ok()?;
            // Something else may still be in front of it.
            element.click().await.ok()
        };
        self.until(&format!("{selector} to click"), clicked).await;
    }

    /// Until something there reads like this.
    pub async fn reads(&self, selector: &str, words: &str) {
        let read = async |browser: &Self| {
            for element in browser.find_all(By::Css(selector)).await.ok()? {
                // Spaces of terminals do not break.
                let text = element.text().await.ok()?.replace('\u{a0}', " ");
                if text.contains(words) {
                    return Some(());
                }
            }
            None
        };
        let what = format!("{selector} that reads {words:?}");
        self.until(&what, read).await;
    }

    /// To whatever has the focus.
    pub async fn types(&self, words: &str) {
        let keys = self.action_chain().send_keys(words);
        keys.perform().await.unwrap();
    }

    pub async fn presses(&self, held: Key, key: char) {
        let keys = self.action_chain().key_down(held.clone());
        let keys = keys.send_keys(key.to_string()).key_up(held);
        keys.perform().await.unwrap();
    }

    /// By which the page came.
    pub async fn protocol(&self) -> String {
        let ask = "return performance.getEntriesByType('navigation')[0].nextHopProtocol";
        let answer = self.execute(ask, Vec::new()).await.unwrap();
        answer.convert().unwrap()
    }

    /// Nothing that could be the gateway's doing went wrong. Pages ask elsewhere for fonts
    /// and news too, which they do not get, and look for files that are not there.
    pub async fn has_no_complaint_about(&self, url: &str) {
        let (_, host) = url.split_once("://").unwrap();
        let log = self.browser_log().await.unwrap();
        let mut severe = log.iter().filter(|entry| entry.level == "SEVERE");
        let complaint = severe.find(|entry| {
            let said = &entry.message;
            let has_failed = said.contains("status of 5") || said.contains("net::ERR_");
            said.contains("WebSocket") || (said.contains(host) && has_failed)
        });
        assert!(complaint.is_none(), "{complaint:?}");
    }

    /// All that it said and was told, by its own log of the network.
    pub async fn close(mut self) -> String {
        self.driver.take().unwrap().quit().await.unwrap();
        self.all_go();
        std::fs::read_to_string(self.file("spoken.json")).unwrap()
    }

    /// What there is to see, for who looks into a failure.
    async fn picture(&self) -> String {
        let shown = std::thread::current();
        let name = shown.name().unwrap_or("browser").replace(':', "-");
        let name = format!("{name}-{}.png", self.chromedriver.id());
        let picture = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        let taken = self.screenshot(&picture).await;
        let log = self.browser_log().await.unwrap_or_default();
        let log: Vec<_> = log.iter().map(|entry| entry.message.as_str()).collect();
        let picture = picture.display();
        format!("see {picture} ({taken:?})\n{}", log.join("\n"))
    }

    fn all_go(&mut self) {
        let _ = self.chromedriver.kill();
        let _ = self.chromedriver.wait();
        loop {
            let left = processes(|_, environment| environment.contains(&self.mark));
            if left.is_empty() {
                return;
            }
            for pid in left {
                signal(pid, Signal::SIGKILL);
            }
            std::thread::yield_now();
        }
    }
}

impl Deref for Browser {
    type Target = WebDriver;

    fn deref(&self) -> &WebDriver {
        self.driver.as_ref().unwrap()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Some(driver) = self.driver.take() {
            let _ = driver.leak();
        }
        self.all_go();
    }
}
