//! What an ACME client signs, checked as RFC 8555 wants it to be.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde::Deserialize;
use serde_json::Value;

/// An account's public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    x: String,
    y: String,
}

impl Key {
    fn of(jwk: &Value) -> Option<Self> {
        let text = |name: &str| Some(jwk.get(name)?.as_str()?.to_owned());
        let is_p256 = text("kty")? == "EC" && text("crv")? == "P-256";
        is_p256.then_some(Self {
            x: text("x")?,
            y: text("y")?,
        })
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let mut point = vec![4];
        point.extend(decode(&self.x));
        point.extend(decode(&self.y));
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
            .verify(message, signature)
            .is_ok()
    }

    /// RFC 7638.
    pub fn thumbprint(&self) -> String {
        let Self { x, y } = self;
        let text = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, text.as_bytes()))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Signed {
    protected: String,
    payload: String,
    signature: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Protected {
    alg: String,
    nonce: String,
    url: String,
    jwk: Option<Value>,
    kid: Option<String>,
}

/// What was signed, and by whom.
pub struct Said {
    pub nonce: String,
    /// None for a new account.
    pub account: Option<String>,
    pub key: Key,
    /// Null where something is only to be read.
    pub payload: Value,
}

/// What `body` says if it is signed for `url` by a key of its own, or by that of an
/// account which `known` finds.
pub fn read(
    body: &[u8],
    url: &str,
    known: impl FnOnce(&str) -> Option<Key>,
) -> Result<Said, &'static str> {
    let signed: Signed = serde_json::from_slice(body).map_err(|_| "no JWS")?;
    let protected: Protected =
        serde_json::from_slice(&decode(&signed.protected)).map_err(|_| "no protected header")?;
    if protected.alg != "ES256" {
        return Err("another algorithm");
    }
    if protected.url != url {
        return Err("signed for another URL");
    }
    let key = match (&protected.jwk, &protected.kid) {
        (Some(jwk), None) => Key::of(jwk).ok_or("no key of P-256")?,
        (None, Some(account)) => known(account).ok_or("accountDoesNotExist")?,
        _ => return Err("jwk and kid, or neither"),
    };
    let message = format!("{}.{}", signed.protected, signed.payload);
    if !key.verifies(message.as_bytes(), &decode(&signed.signature)) {
        return Err("the signature is wrong");
    }
    let payload = match signed.payload.as_str() {
        "" => Value::Null,
        payload => {
            serde_json::from_slice(&decode(payload)).map_err(|_| "the payload is no JSON")?
        }
    };
    Ok(Said {
        nonce: protected.nonce,
        account: protected.kid,
        key,
        payload,
    })
}

pub fn decode(text: &str) -> Vec<u8> {
    BASE64_URL_SAFE_NO_PAD.decode(text).unwrap()
}
