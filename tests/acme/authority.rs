//! A certificate authority that speaks ACME (RFC 8555) and believes nothing.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer,
    DistinguishedName, DnType, IsCa, KeyPair, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::challenge::is_proven;
use crate::jws::{self, Key, Said};

/// How it treats who comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// As it should.
    Well,
    /// It closes connections as they come.
    Down,
    /// It answers 503, and not in its own words.
    Broken,
    /// It takes no orders.
    Refusing,
}

/// Clones are handles to the same one.
#[derive(Clone)]
pub struct Authority(Arc<Shared>);

struct Shared {
    at: SocketAddr,
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
    books: watch::Sender<Books>,
    nonces: Mutex<HashSet<String>>,
}

#[derive(Clone)]
struct Books {
    mood: Mood,
    lifetime: Duration,
    /// Where port 443 of every name is.
    reach: Option<SocketAddr>,
    accounts: Vec<Account>,
    orders: Vec<Order>,
    /// How often something was asked for, of whatever kind.
    asked: usize,
}

#[derive(Clone)]
struct Account {
    key: Key,
    contact: Value,
}

#[derive(Clone)]
struct Order {
    account: String,
    name: String,
    token: String,
    status: &'static str,
    error: Option<String>,
    certificate: Option<String>,
}

impl Authority {
    pub async fn new() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let name = "an authority of the tests";
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        let this = Self(Arc::new(Shared {
            at,
            issuer,
            folder,
            books: watch::Sender::new(Books {
                mood: Mood::Well,
                lifetime: Duration::from_secs(90 * 86_400),
                reach: None,
                accounts: Vec::new(),
                orders: Vec::new(),
                asked: 0,
            }),
            nonces: Mutex::default(),
        }));
        tokio::spawn(this.clone().serve(listener));
        this
    }

    pub fn directory(&self) -> String {
        self.url("directory")
    }

    /// By what its own server is known, and all that it issues.
    pub fn root_file(&self) -> PathBuf {
        self.0.folder.path().join("ca.pem")
    }

    pub fn root(&self) -> CertificateDer<'static> {
        self.0.issuer.der().clone()
    }

    pub fn set_mood(&self, mood: Mood) {
        self.0.books.send_modify(|books| books.mood = mood);
    }

    /// Of certificates from now on.
    pub fn set_lifetime(&self, lifetime: Duration) {
        self.0.books.send_modify(|books| books.lifetime = lifetime);
    }

    /// Names lead here from now on; until then nothing is looked at.
    pub fn reaches(&self, at: SocketAddr) {
        self.0.books.send_modify(|books| books.reach = Some(at));
    }

    /// As before they first led anywhere: the server that was there is gone.
    pub fn reaches_nobody(&self) {
        self.0.books.send_modify(|books| books.reach = None);
    }

    /// As if it had lost its books.
    pub fn forget_accounts(&self) {
        self.0.books.send_modify(|books| books.accounts.clear());
    }

    pub fn accounts(&self) -> usize {
        self.0.books.borrow().accounts.len()
    }

    pub fn contacts(&self) -> Vec<Value> {
        let books = self.0.books.borrow();
        books.accounts.iter().map(|it| it.contact.clone()).collect()
    }

    pub fn orders(&self) -> usize {
        self.0.books.borrow().orders.len()
    }

    /// Until it has been asked so many times more.
    pub async fn is_asked(&self, times: usize) {
        let mut books = self.0.books.subscribe();
        let before = books.borrow_and_update().asked;
        let asked = books.wait_for(|books| books.asked >= before + times);
        let asked = tokio::time::timeout(Duration::from_secs(30), asked).await;
        drop(asked.expect("it is asked within 30 s").unwrap());
    }

    fn url(&self, path: impl std::fmt::Display) -> String {
        format!("https://{}/{path}", self.0.at)
    }

    async fn serve(self, listener: TcpListener) {
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new([self.0.at.ip().to_string()]).unwrap();
        let own = own.signed_by(&key, &self.0.issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![own.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let router = Router::new()
            .route("/directory", get(directory))
            .route("/nonce", any(nonce))
            .fallback(signed)
            .with_state(self.clone());
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mood = self.0.books.borrow().mood;
            self.0.books.send_modify(|books| books.asked += 1);
            if mood == Mood::Down {
                continue;
            }
            let (acceptor, service) = (acceptor.clone(), router.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                // One request a connection, so that each comes to who is in what mood.
                let _ = hyper::server::conn::http1::Builder::new()
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
                    .await;
            });
        }
    }

    fn nonce(&self) -> String {
        let nonce = format!("{:032x}", fastrand::u128(..));
        self.0.nonces.lock().unwrap().insert(nonce.clone());
        nonce
    }

    fn answer(&self, status: u16, location: Option<String>, body: Value) -> Response {
        let status = StatusCode::from_u16(status).unwrap();
        let kind = match status.is_success() {
            true => "application/json",
            false => "application/problem+json",
        };
        let headers = [
            ("replay-nonce", self.nonce()),
            ("content-type", kind.to_owned()),
            ("location", location.unwrap_or_default()),
        ];
        (status, headers, body.to_string()).into_response()
    }

    fn refuse(&self, status: u16, kind: &str, detail: &str) -> Response {
        let kind = format!("urn:ietf:params:acme:error:{kind}");
        self.answer(status, None, json!({"type": kind, "detail": detail}))
    }

    /// What was signed, if it was so and by an account, or else the refusal.
    fn read(&self, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> Result<Said, Box<Response>> {
        if self.0.books.borrow().mood == Mood::Broken {
            return Err(Box::new(
                (StatusCode::SERVICE_UNAVAILABLE, "<html>").into_response(),
            ));
        }
        let kind = headers.get(header::CONTENT_TYPE);
        if kind.is_none_or(|kind| kind != "application/jose+json") {
            return Err(Box::new(self.refuse(415, "malformed", "no JOSE")));
        }
        let path = uri.path().trim_start_matches('/');
        let said = jws::read(body, &self.url(path), |account| {
            let number: usize = account.rsplit_once('/')?.1.parse().ok()?;
            let books = self.0.books.borrow();
            books
                .accounts
                .get(number)
                .map(|account| account.key.clone())
        });
        let said = said.map_err(|why| {
            let kind = match why {
                "accountDoesNotExist" => why,
                _ => "malformed",
            };
            Box::new(self.refuse(400, kind, why))
        })?;
        if !self.0.nonces.lock().unwrap().remove(&said.nonce) {
            return Err(Box::new(self.refuse(400, "badNonce", "not one of mine")));
        }
        if said.account.is_none() && path != "account" {
            return Err(Box::new(self.refuse(400, "malformed", "no account")));
        }
        Ok(said)
    }

    fn order_json(&self, number: usize, order: &Order) -> Value {
        json!({
            "status": order.status,
            "identifiers": [{"type": "dns", "value": order.name}],
            "authorizations": [self.url(format_args!("authorization/{number}"))],
            "finalize": self.url(format_args!("finalize/{number}")),
            "certificate": order.certificate.as_ref().map(|_| {
                self.url(format_args!("certificate/{number}"))
            }),
        })
    }

    fn challenge_json(&self, number: usize, order: &Order) -> Value {
        let error = order.error.as_ref().map(
            |detail| json!({"type": "urn:ietf:params:acme:error:unauthorized", "detail": detail}),
        );
        json!({
            "type": "tls-alpn-01",
            "url": self.url(format_args!("challenge/{number}")),
            "token": order.token,
            "status": proven(order),
            "error": error,
        })
    }

    /// One of `said`'s orders, changed.
    fn with_order<T>(
        &self,
        number: usize,
        said: &Said,
        see: impl FnOnce(&mut Order) -> T,
    ) -> Result<T, Box<Response>> {
        let mut seen = None;
        self.0.books.send_modify(|books| {
            let order = books.orders.get_mut(number);
            let own = order.filter(|order| Some(&order.account) == said.account.as_ref());
            seen = own.map(see);
        });
        seen.ok_or_else(|| Box::new(self.refuse(404, "malformed", "not one of yours")))
    }

    /// Look whether the name is its server's.
    async fn validate(self, number: usize, key: Key) {
        let mut books = self.0.books.subscribe();
        let (reach, order) = {
            let books = books.wait_for(|books| books.reach.is_some()).await.unwrap();
            (books.reach.unwrap(), books.orders[number].clone())
        };
        let authorization = format!("{}.{}", order.token, key.thumbprint());
        let proven = is_proven(reach, &order.name, &authorization).await;
        self.0.books.send_modify(|books| {
            let order = &mut books.orders[number];
            match proven {
                Ok(()) => order.status = "ready",
                Err(why) => (order.status, order.error) = ("invalid", Some(why)),
            }
        });
    }

    fn issue(&self, order: &Order, request: Vec<u8>) -> Result<String, String> {
        let request = CertificateSigningRequestParams::from_der(&request.into());
        let mut request = request.map_err(|error| error.to_string())?;
        let names = &request.params.subject_alt_names;
        if *names
            != [rcgen::SanType::DnsName(
                order.name.as_str().try_into().unwrap(),
            )]
        {
            return Err(format!("the request is for {names:?}"));
        }
        let epoch = date_time_ymd(1970, 1, 1);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = epoch + now.unwrap();
        request.params.not_before = now;
        request.params.not_after = now + self.0.books.borrow().lifetime;
        let certificate = request.signed_by(&self.0.issuer).unwrap();
        Ok(certificate.pem() + &self.0.issuer.pem())
    }
}

const fn proven(order: &Order) -> &'static str {
    match order.status.as_bytes() {
        b"pending" => "pending",
        b"invalid" => "invalid",
        _ => "valid",
    }
}

type Ca = State<Authority>;

async fn directory(State(ca): Ca) -> Response {
    if ca.0.books.borrow().mood == Mood::Broken {
        return (StatusCode::SERVICE_UNAVAILABLE, "<html>").into_response();
    }
    let directory = json!({
        "newNonce": ca.url("nonce"),
        "newAccount": ca.url("account"),
        "newOrder": ca.url("order"),
    });
    ca.answer(200, None, directory)
}

async fn nonce(State(ca): Ca) -> Response {
    [("replay-nonce", ca.nonce())].into_response()
}

/// All else is signed.
async fn signed(State(ca): Ca, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let answered = ca.read(&uri, &headers, &body).and_then(|said| {
        let path = uri.path().trim_start_matches('/');
        match path.split_once('/') {
            None if path == "account" => Ok(ca.new_account(said)),
            None => Ok(ca.new_order(said)),
            Some((what, number)) => ca.go_on(what, number.parse().unwrap(), &said),
        }
    });
    answered.unwrap_or_else(|refusal| *refusal)
}

impl Authority {
    fn new_account(&self, said: Said) -> Response {
        if said.payload["termsOfServiceAgreed"] != true {
            return self.refuse(403, "userActionRequired", "agree first");
        }
        let account = Account {
            key: said.key,
            contact: said.payload["contact"].clone(),
        };
        let mut number = 0;
        self.0.books.send_modify(|books| {
            number = books.accounts.len();
            books.accounts.push(account);
        });
        let at = self.url(format_args!("account/{number}"));
        self.answer(201, Some(at), json!({"status": "valid"}))
    }

    fn new_order(&self, said: Said) -> Response {
        if self.0.books.borrow().mood == Mood::Refusing {
            return self.refuse(403, "rejectedIdentifier", "this name is not for you");
        }
        let identifiers = &said.payload["identifiers"];
        let name = identifiers[0]["value"].as_str().unwrap().to_owned();
        assert_eq!(*identifiers, json!([{"type": "dns", "value": name}]));
        let order = Order {
            account: said.account.unwrap(),
            name,
            token: format!("{:032x}", fastrand::u128(..)),
            status: "pending",
            error: None,
            certificate: None,
        };
        let mut number = 0;
        self.0.books.send_modify(|books| {
            number = books.orders.len();
            books.orders.push(order.clone());
        });
        let at = self.url(format_args!("order/{number}"));
        self.answer(201, Some(at), self.order_json(number, &order))
    }

    /// What is done with an order that there is.
    fn go_on(&self, what: &str, number: usize, said: &Said) -> Result<Response, Box<Response>> {
        let order = self.with_order(number, said, |order| order.clone())?;
        let json = match what {
            "order" => {
                // Issuing takes until it is looked at once.
                self.with_order(number, said, |order| {
                    if order.status == "processing" {
                        order.status = "valid";
                    }
                })?;
                self.order_json(number, &order)
            }
            "authorization" => {
                let url = self.url("nowhere");
                json!({
                    "status": proven(&order),
                    "identifier": {"type": "dns", "value": order.name},
                    "challenges": [
                        {"type": "http-01", "url": url, "token": "x", "status": "pending"},
                        self.challenge_json(number, &order),
                    ],
                })
            }
            "challenge" => {
                if said.payload == json!({}) && order.status == "pending" {
                    tokio::spawn(self.clone().validate(number, said.key.clone()));
                }
                self.challenge_json(number, &order)
            }
            "finalize" if order.status != "ready" => {
                return Ok(self.refuse(403, "orderNotReady", "prove it first"));
            }
            "finalize" => {
                let request = jws::decode(said.payload["csr"].as_str().unwrap());
                let issued = match self.issue(&order, request) {
                    Ok(issued) => issued,
                    Err(why) => return Ok(self.refuse(403, "badCSR", &why)),
                };
                let order = self.with_order(number, said, |order| {
                    order.status = "processing";
                    order.certificate = Some(issued);
                    order.clone()
                })?;
                self.order_json(number, &order)
            }
            "certificate" => {
                let kind = "application/pem-certificate-chain".to_owned();
                let headers = [("replay-nonce", self.nonce()), ("content-type", kind)];
                return Ok((headers, order.certificate.unwrap_or_default()).into_response());
            }
            other => panic!("asked for {other}"),
        };
        Ok(self.answer(200, None, json))
    }
}
