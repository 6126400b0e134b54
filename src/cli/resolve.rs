//! What people type for an id: its beginning, or a machine's name.

use super::output::Failure;
use crate::client::Client;
use crate::client::wire::MachineRow;

/// The length of a whole id.
const ID_CHARS: usize = 36;

/// Which sessions can be meant.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Among {
    /// Those that have not ended.
    Open,
    /// Those that have ended too.
    All,
}

/// The id of the session that begins with `text`.
pub async fn session(client: &Client, text: &str, among: Among) -> Result<String, Failure> {
    if text.len() == ID_CHARS {
        return Ok(text.to_owned());
    }
    let sessions = client.sessions(among == Among::All).await?.value;
    let ids = sessions.into_iter().map(|session| session.id);
    match only(ids, text) {
        Ok(id) => Ok(id),
        Err(0) => Err(Failure::new(match among {
            Among::Open => {
                format!("no open session begins with {text}; `dwell ls` shows those there are")
            }
            Among::All => {
                format!("no session begins with {text}; `dwell ls --all` shows those there are")
            }
        })),
        Err(many) => Err(Failure::new(format!(
            "{many} sessions begin with {text}; give more of the id"
        ))),
    }
}

/// The machine of this name, or whose id begins with `text`.
pub async fn machine(client: &Client, text: &str) -> Result<MachineRow, Failure> {
    let machines = client.machines().await?.value;
    let named: Vec<_> = machines
        .iter()
        .filter(|machine| machine.name == text || machine.id == text)
        .collect();
    match named.as_slice() {
        [machine] => return Ok((*machine).clone()),
        [] => {}
        many => {
            let ids: Vec<_> = many.iter().map(|machine| machine.id.as_str()).collect();
            return Err(Failure::new(format!(
                "{} machines are named {text}; give the id of one: {}",
                many.len(),
                ids.join(", ")
            )));
        }
    }
    match only(machines.iter().map(|machine| machine.id.clone()), text) {
        Ok(id) => machines
            .into_iter()
            .find(|machine| machine.id == id)
            .ok_or_else(|| Failure::new("the machine is gone")),
        Err(0) => Err(Failure::new(format!(
            "no machine is named {text}; `dwell machines ls` shows those there are"
        ))),
        Err(many) => Err(Failure::new(format!(
            "the ids of {many} machines begin with {text}; give more of it, or the name"
        ))),
    }
}

/// The id of the key that begins with `text`.
pub async fn key(client: &Client, text: &str) -> Result<String, Failure> {
    if text.len() == ID_CHARS {
        return Ok(text.to_owned());
    }
    let keys = client.keys().await?.value;
    only(keys.into_iter().map(|key| key.id), text).map_err(|count| {
        Failure::new(match count {
            0 => format!("no key's id begins with {text}; `dwell keys ls` shows those there are"),
            many => format!("the ids of {many} keys begin with {text}; give more of it"),
        })
    })
}

/// The id of the session's share link that begins with `text`.
pub async fn share(client: &Client, session: &str, text: &str) -> Result<String, Failure> {
    if text.len() == ID_CHARS {
        return Ok(text.to_owned());
    }
    let links = client.shares(session).await?.value;
    only(links.into_iter().map(|link| link.id), text).map_err(|count| {
        Failure::new(match count {
            0 => format!("no link's id begins with {text}; `dwell share ls` shows those there are"),
            many => format!("the ids of {many} links begin with {text}; give more of it"),
        })
    })
}

/// The only one of `ids` that begins with `text`, or how many do.
fn only(ids: impl Iterator<Item = String>, text: &str) -> Result<String, usize> {
    let begins = |id: &String| !text.is_empty() && id.starts_with(&text.to_lowercase());
    let mut matching: Vec<_> = ids.filter(begins).collect();
    match (matching.pop(), matching.len()) {
        (Some(id), 0) => Ok(id),
        (Some(_), others) => Err(others + 1),
        (None, _) => Err(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_may_be_shortened_while_it_is_the_only_one() {
        let ids = || ["abc1", "abd2"].into_iter().map(String::from);
        assert_eq!(only(ids(), "abc"), Ok("abc1".into()));
        assert_eq!(only(ids(), "ABD"), Ok("abd2".into()));
        assert_eq!(only(ids(), "ab"), Err(2));
        assert_eq!(only(ids(), "x"), Err(0));
        assert_eq!(only(ids(), ""), Err(0));
    }
}
