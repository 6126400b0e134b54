//! A line to the server that can be cut when it matters.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use dwell::store::postgres::Address;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

/// When a connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The server never sees the commit.
    BeforeCommit,
    /// The server has committed, and nobody hears that.
    AfterCommit,
}

/// What is wanted of the line.
#[derive(Default)]
struct Wanted {
    cut: Option<Cut>,
    /// After the cut nobody comes through.
    then_closed: bool,
    closed: bool,
    commits: u32,
}

/// A line.
pub struct Line {
    port: u16,
    wanted: Arc<Mutex<Wanted>>,
    turned_away: watch::Receiver<u32>,
}

impl Line {
    /// To the server that has this socket.
    pub async fn to(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let wanted = Arc::new(Mutex::new(Wanted::default()));
        let (away, turned_away) = watch::channel(0);
        let shared = Arc::clone(&wanted);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if shared.lock().unwrap().closed {
                    away.send_modify(|count| *count += 1);
                    continue;
                }
                let (socket, shared) = (socket.clone(), Arc::clone(&shared));
                tokio::spawn(async move { carry(client, &socket, &shared).await });
            }
        });
        Self {
            port,
            wanted,
            turned_away,
        }
    }

    /// Where that database is by this line.
    pub fn address(&self, database: &str) -> Address {
        let url = format!(
            "postgres://dwell@127.0.0.1:{}/{database}?sslmode=disable",
            self.port
        );
        url.parse().unwrap()
    }

    /// At the next commit.
    pub fn cut(&self, cut: Cut, then_closed: bool) {
        let mut wanted = self.wanted.lock().unwrap();
        (wanted.cut, wanted.then_closed) = (Some(cut), then_closed);
    }

    pub fn open(&self) {
        self.wanted.lock().unwrap().closed = false;
    }

    /// How many commits came so far, those that were cut off included.
    pub fn commits(&self) -> u32 {
        self.wanted.lock().unwrap().commits
    }

    /// Until so many came while it was closed.
    pub async fn turned_away(&self, count: u32) {
        let mut turned_away = self.turned_away.clone();
        turned_away
            .wait_for(|so_far| *so_far >= count)
            .await
            .unwrap();
    }
}

/// Until either end closes it, or it is cut.
async fn carry(client: TcpStream, socket: &Path, wanted: &Mutex<Wanted>) -> Option<()> {
    let server = UnixStream::connect(socket).await.ok()?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let (cutting, mut cut) = watch::channel(false);
    let there = async move {
        // The first message has no letter.
        let first = body(&mut from_client).await?;
        to_server.write_all(&first).await.ok()?;
        loop {
            let letter = from_client.read_u8().await.ok()?;
            let body = body(&mut from_client).await?;
            let is_commit = letter == b'Q' && body.ends_with(b"COMMIT\0");
            match is_commit.then(|| at_commit(wanted)).flatten() {
                Some(Cut::BeforeCommit) => return None::<()>,
                Some(Cut::AfterCommit) => {
                    let _ = cutting.send(true);
                }
                None => {}
            }
            to_server
                .write_all(&[&[letter], &*body].concat())
                .await
                .ok()?;
        }
    };
    let back = async move {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let length = from_server.read(&mut buffer).await.ok()?;
            // The answer to a commit is here: it was made.
            if length == 0 || *cut.borrow_and_update() {
                return None::<()>;
            }
            to_client.write_all(&buffer[..length]).await.ok()?;
        }
    };
    tokio::select! {
        _ = there => {}
        _ = back => {}
    }
    None
}

fn at_commit(wanted: &Mutex<Wanted>) -> Option<Cut> {
    let mut wanted = wanted.lock().unwrap();
    wanted.commits += 1;
    let cut = wanted.cut.take()?;
    wanted.closed = wanted.then_closed;
    Some(cut)
}

/// A message's length and what follows.
async fn body(from: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let length = from.read_u32().await.ok()?;
    let mut body = length.to_be_bytes().to_vec();
    body.resize(length as usize, 0);
    from.read_exact(&mut body[4..]).await.ok()?;
    Some(body)
}
