//! What stands between an agent and its server, and fails as networks do.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dwell::keep_alive::{CHANNEL, expect_answers, wait_for_readers};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How it is on the way. Connections are numbered as they come.
#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    delay: Duration,
    bytes_per_second: Option<u32>,
    /// Nothing passes on connections below, and nobody is told.
    stalled_below: u64,
    /// Connections below are reset.
    reset_below: u64,
    /// Those that began with a call for the control channel are.
    control_reset_below: u64,
}

/// Leads connections on to where it is told to.
pub struct Relay {
    pub at: SocketAddr,
    weather: watch::Sender<Weather>,
    leads_to: watch::Sender<Option<SocketAddr>>,
    count: Arc<AtomicU64>,
    accepting: JoinHandle<()>,
}

impl Relay {
    pub async fn at(address: Ipv4Addr) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        let weather = watch::Sender::new(Weather::default());
        let leads_to = watch::Sender::new(None);
        let count = Arc::<AtomicU64>::default();
        let accepting = {
            let (weather, leads_to) = (weather.clone(), leads_to.clone());
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                loop {
                    let (agent, _) = listener.accept().await.unwrap();
                    let number = count.fetch_add(1, Ordering::SeqCst);
                    let (weather, leads_to) = (weather.subscribe(), leads_to.subscribe());
                    tokio::spawn(lead(agent, leads_to, number, weather));
                }
            })
        };
        Self {
            at,
            weather,
            leads_to,
            count,
            accepting,
        }
    }

    pub fn lead_to(&self, server: SocketAddr) {
        self.leads_to.send_replace(Some(server));
    }

    /// How many connections have come.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    pub fn delay(&self, delay: Duration) {
        self.weather.send_modify(|weather| weather.delay = delay);
    }

    pub fn throttle(&self, bytes_per_second: u32) {
        let rate = Some(bytes_per_second);
        self.weather
            .send_modify(|weather| weather.bytes_per_second = rate);
    }

    /// All that is open is from now on as if it were not, and nobody is told.
    pub fn stall(&self) {
        let count = self.count();
        self.weather
            .send_modify(|weather| weather.stalled_below = count);
    }

    pub fn reset(&self) {
        let count = self.count();
        self.weather
            .send_modify(|weather| weather.reset_below = count);
    }

    pub fn reset_control(&self) {
        let count = self.count();
        self.weather
            .send_modify(|weather| weather.control_reset_below = count);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn lead(
    mut agent: TcpStream,
    mut leads_to: watch::Receiver<Option<SocketAddr>>,
    number: u64,
    weather: watch::Receiver<Weather>,
) {
    let server = leads_to.wait_for(Option::is_some).await;
    let server = server.map(|server| server.unwrap());
    let Ok(server) = server else {
        return;
    };
    let Ok(mut server) = TcpStream::connect(server).await else {
        return;
    };
    for stream in [&agent, &server] {
        stream.set_nodelay(true).unwrap();
        // As whatever stands in between does, it notices who is gone.
        expect_answers(stream, CHANNEL).unwrap();
    }
    // Who visits may be slow to read.
    wait_for_readers(&server).unwrap();
    let mut begins = [0; 128];
    let length = agent.peek(&mut begins).await.unwrap_or_default();
    let is_control = begins[..length].windows(9).any(|part| part == b"/control ");
    let mut watched = weather.clone();
    let is_reset = watched.wait_for(|weather| {
        number < weather.reset_below || (is_control && number < weather.control_reset_below)
    });
    let passed = {
        let (from_agent, to_agent) = agent.split();
        let (from_server, to_server) = server.split();
        let there = pass(from_agent, to_server, number, weather.clone());
        let back = pass(from_server, to_agent, number, weather.clone());
        tokio::select! {
            _ = is_reset => false,
            _ = async { tokio::try_join!(there, back) } => true,
        }
    };
    if !passed {
        for stream in [agent, server] {
            // Closed so, it is reset.
            let _ = stream.set_zero_linger();
        }
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    number: u64,
    mut weather: watch::Receiver<Weather>,
) -> io::Result<()> {
    let mut bytes = vec![0; 16 * 1_024];
    loop {
        let read = from.read(&mut bytes).await?;
        let Weather {
            delay,
            bytes_per_second,
            ..
        } = *weather.borrow();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if let Some(rate) = bytes_per_second {
            let length = u32::try_from(read).unwrap();
            tokio::time::sleep(Duration::from_secs(1) * length / rate).await;
        }
        let passes = weather.wait_for(|weather| number >= weather.stalled_below);
        if passes.await.is_err() {
            return Ok(());
        }
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&bytes[..read]).await?;
    }
}
