//! A name server that leads every name to the loopback.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use uuid::Uuid;

/// It is asked for this when it is to go.
const STOP: &[u8] = b"stop";

pub struct Names {
    address: SocketAddr,
    asked_for: Arc<Mutex<Vec<String>>>,
    answering: Option<JoinHandle<()>>,
}

impl Names {
    /// On an address of its own: everyone's resolver has the port 53.
    pub fn new() -> Self {
        let [a, b, c, ..] = *Uuid::new_v4().as_bytes();
        let socket = UdpSocket::bind((Ipv4Addr::new(127, a, b, c.clamp(1, 254)), 53)).unwrap();
        let address = socket.local_addr().unwrap();
        let asked_for = Arc::<Mutex<Vec<String>>>::default();
        let answering = std::thread::spawn({
            let asked_for = Arc::clone(&asked_for);
            move || {
                let mut buffer = [0; 512];
                loop {
                    let (bytes, asker) = socket.recv_from(&mut buffer).unwrap();
                    let question = &buffer[..bytes];
                    if question == STOP {
                        return;
                    }
                    let (name, answer) = answer(question);
                    asked_for.lock().unwrap().push(name);
                    socket.send_to(&answer, asker).unwrap();
                }
            }
        });
        Self {
            address,
            asked_for,
            answering: Some(answering),
        }
    }

    pub fn address(&self) -> String {
        self.address.ip().to_string()
    }

    pub fn asked_for(&self) -> Vec<String> {
        self.asked_for.lock().unwrap().clone()
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(STOP, self.address).unwrap();
        self.answering.take().unwrap().join().unwrap();
    }
}

/// The name that is asked for, and its answer: one address for IPv4, none for IPv6.
fn answer(question: &[u8]) -> (String, Vec<u8>) {
    const HEADER_BYTES: usize = 12;
    const IPV4: [u8; 2] = [0, 1];
    let mut labels = Vec::new();
    let mut at = HEADER_BYTES;
    while question[at] != 0 {
        let end = at + 1 + usize::from(question[at]);
        labels.push(String::from_utf8_lossy(&question[at + 1..end]).into_owned());
        at = end;
    }
    // The name's end, the type and the class.
    let asked = &question[HEADER_BYTES..at + 5];
    let is_ipv4 = question[at + 1..at + 3] == IPV4;
    let mut answer = question[..2].to_vec();
    // An answer, recursion and all; one question, perhaps one record.
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_ipv4), 0, 0, 0, 0]);
    answer.extend(asked);
    if is_ipv4 {
        // The name as above, the type, the class, a minute, and four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    (labels.join("."), answer)
}
