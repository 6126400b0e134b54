//! Many clients in one thread, at little cost of their own.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

use super::client::Client;
use crate::Result;

/// Longer than any answer takes.
const PATIENCE: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};
/// The event that no client is behind.
const WAKE: u64 = u64::MAX;

pub struct Crowd {
    clients: Vec<Client>,
    epoll: OwnedFd,
    events: Vec<Event>,
    buffer: Vec<u8>,
}

impl Crowd {
    pub fn new(clients: Vec<Client>) -> Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        for (number, client) in (0..).zip(&clients) {
            hear_of(&epoll, number, client)?;
        }
        Ok(Self {
            events: Vec::with_capacity(clients.len() + 1),
            clients,
            epoll,
            buffer: vec![0; 64 * 1_024],
        })
    }

    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Have [`Crowd::answered`] return when this is readable, too.
    pub fn wake_by(&self, wake: impl AsFd) -> Result<()> {
        let data = EventData::new_u64(WAKE);
        Ok(epoll::add(&self.epoll, wake, data, EventFlags::IN)?)
    }

    pub fn ask(&mut self, client: usize) -> Result<()> {
        self.clients.get_mut(client).ok_or("no client")?.ask()
    }

    /// Wait for answers, and tell of each client that has got its own.
    pub fn answered(&mut self, mut tell: impl FnMut(usize)) -> Result<()> {
        match epoll::wait(
            &self.epoll,
            spare_capacity(&mut self.events),
            Some(&PATIENCE),
        ) {
            Ok(0) => return Err("the proxy does not answer".into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in self.events.drain(..) {
            let number = usize::try_from(event.data.u64())?;
            // The other event only wakes.
            if let Some(client) = self.clients.get_mut(number)
                && client.hear(&mut self.buffer)?
            {
                tell(number);
            }
        }
        Ok(())
    }

    /// Another one comes as soon as one has its answer and is gone, for that long and
    /// until all have theirs. How many answers there were.
    pub fn come_and_go_for(
        &mut self,
        period: Duration,
        another: impl Fn() -> Result<Client>,
    ) -> Result<u64> {
        let began = Instant::now();
        (0..self.len()).try_for_each(|client| self.ask(client))?;
        let (mut asked, mut answered) = (u64::try_from(self.len())?, 0);
        let mut who = Vec::with_capacity(self.len());
        while answered < asked {
            self.answered(|client| who.push(client))?;
            answered += u64::try_from(who.len())?;
            for client in who.drain(..) {
                let place = self.clients.get_mut(client).ok_or("no client")?;
                // The one before it hangs up.
                *place = another()?;
                hear_of(&self.epoll, u64::try_from(client)?, place)?;
                if began.elapsed() < period {
                    asked += 1;
                    place.ask()?;
                }
            }
        }
        Ok(answered)
    }

    /// Every client asks again as soon as it has its answer, for that long and until
    /// all have theirs. How many answers there were.
    pub fn ask_for(&mut self, period: Duration) -> Result<u64> {
        let began = Instant::now();
        (0..self.len()).try_for_each(|client| self.ask(client))?;
        let (mut asked, mut answered) = (u64::try_from(self.len())?, 0);
        let mut who = Vec::with_capacity(self.len());
        while answered < asked {
            self.answered(|client| who.push(client))?;
            answered += u64::try_from(who.len())?;
            if began.elapsed() < period {
                asked += u64::try_from(who.len())?;
                who.iter().try_for_each(|client| self.ask(*client))?;
            }
            who.clear();
        }
        Ok(answered)
    }
}

/// Have a client's answers be waited for.
fn hear_of(epoll: &OwnedFd, number: u64, client: &Client) -> Result<()> {
    client.stream.set_nonblocking(true)?;
    let data = EventData::new_u64(number);
    Ok(epoll::add(epoll, &client.stream, data, EventFlags::IN)?)
}
