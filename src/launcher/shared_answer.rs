//! One answer for all who asked before it was asked for.

use tokio::sync::Mutex;

use dwell_core::time::Monotonic;

use crate::clock;

/// What was answered, asked at that moment.
#[derive(Clone, Debug)]
pub struct Answer<T> {
    /// When it was asked: what happened since it need not know of.
    pub asked_at: Monotonic,
    /// It.
    pub said: T,
}

/// The last answer to a question that is dear to ask.
#[derive(Debug)]
pub struct SharedAnswer<T>(Mutex<Option<Answer<T>>>);

impl<T> Default for SharedAnswer<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> SharedAnswer<T> {
    /// As it is answered after this is called. Who calls while `ask` is under way shares the
    /// next answer with all others who did.
    ///
    /// # Errors
    /// Those of `ask`.
    pub async fn get<E>(&self, ask: impl Future<Output = Result<T, E>>) -> Result<Answer<T>, E> {
        let called_at = clock::monotonic();
        let mut last = self.0.lock().await;
        if let Some(answer) = last.as_ref().filter(|it| it.asked_at > called_at) {
            return Ok(answer.clone());
        }
        let asked_at = clock::monotonic();
        let answer = Answer {
            asked_at,
            said: ask.await?,
        };
        *last = Some(answer.clone());
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn who_asks_meanwhile_shares_the_next_answer() {
        let (shared, asked) = (
            Arc::new(SharedAnswer::default()),
            Arc::new(AtomicU32::new(0)),
        );
        let (let_go, held) = tokio::sync::watch::channel(false);
        let ask = || {
            let (shared, asked, mut held) = (Arc::clone(&shared), Arc::clone(&asked), held.clone());
            tokio::spawn(async move {
                let answer = async {
                    let number = asked.fetch_add(1, Ordering::Relaxed);
                    let _ = held.wait_for(|is_let_go| *is_let_go).await;
                    Ok::<_, ()>(number)
                };
                shared.get(answer).await.unwrap().said
            })
        };
        let first = ask();
        while asked.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..5).map(|_| ask()).collect();
        // All call, and the clock that tells so goes on.
        tokio::task::yield_now().await;
        let called_at = clock::monotonic();
        while clock::monotonic() == called_at {
            tokio::task::yield_now().await;
        }
        let_go.send(true).unwrap();
        assert_eq!(first.await.unwrap(), 0);
        for other in others {
            assert_eq!(other.await.unwrap(), 1);
        }
    }
}
