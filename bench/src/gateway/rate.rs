//! How long requests take that come at a fixed rate.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use super::Reading;
use super::client::Client;
use super::crowd::Crowd;
use super::peer::Peer;
use crate::Result;
use crate::statistics::Sample;

const CONNECTIONS: usize = 64;
/// 2,000 a second.
const PACE: Duration = Duration::from_micros(500);
const WARM_UP: u32 = 200;
const MEASURED: u32 = 2_000;

pub fn latency(peer: &Peer) -> Result<Vec<Reading>> {
    let address = peer.address()?;
    let clients = (0..CONNECTIONS).map(|_| Client::http(address));
    let mut crowd = Crowd::new(clients.collect::<Result<_>>()?)?;
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
    crowd.wake_by(&timer)?;
    at_fixed_rate(&mut crowd, &timer, WARM_UP)?;
    let latency = at_fixed_rate(&mut crowd, &timer, MEASURED)?;
    let reading = |name: &str, share| {
        let figure = format!("latency at 2,000 requests per second, {name}, µs");
        Reading::new(&figure, latency.quantile(share).as_secs_f64() * 1e6)
    };
    Ok(vec![reading("p50", 0.5), reading("p99", 0.99)])
}

/// From when each was due to its answer: who cannot keep up is not waited for.
fn at_fixed_rate(crowd: &mut Crowd, timer: &OwnedFd, requests: u32) -> Result<Sample> {
    let began = Instant::now();
    let pace = PACE.try_into()?;
    let every = Itimerspec {
        it_interval: pace,
        it_value: pace,
    };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &every)?;
    let mut due = (1..=requests)
        .map(|number| began + PACE * number)
        .peekable();
    let mut idle: VecDeque<usize> = (0..crowd.len()).collect();
    let mut since = vec![began; crowd.len()];
    let mut latency = Sample::default();
    while latency.len() < usize::try_from(requests)? {
        crowd.answered(|client| {
            latency.extend(since.get(client).map(Instant::elapsed));
            idle.push_back(client);
        })?;
        // Until it is read it does not go off again; it may not have gone off yet.
        let _ = rustix::io::read(timer, &mut [0; 8]);
        while let Some(client) = idle.front().copied()
            && let Some(due) = due.next_if(|due| *due <= Instant::now())
        {
            idle.pop_front();
            crowd.ask(client)?;
            if let Some(since) = since.get_mut(client) {
                *since = due;
            }
        }
    }
    Ok(latency)
}
