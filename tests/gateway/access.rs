//! Who may pass, what of theirs passes with them, and what scripts are told.

use dwell::admission::Admission;
use dwell::gateway::{Route, RouteStatus, TimeLimits};
use dwell::keys;
use dwell_core::id::{SessionId, ShareId};
use dwell_core::key::Key;
use dwell_core::machine::Access;
use dwell_core::owner::{Owner, Principal, UserId};
use dwell_core::share::{Revocation, Scope, Share};
use dwell_core::time::Timestamp;
use hyper::Response;
use uuid::Uuid;

use crate::house::{Front, House};
use crate::support::*;

async fn private_site() -> Site {
    let app = App::mirror().await;
    Site::new(Route {
        access: Access::Private,
        ..route(1, running(app.at))
    })
    .await
}

#[tokio::test]
async fn a_private_session_opens_to_its_owners_keys_alone_however_they_are_shown() {
    let site = private_site().await;
    let ways = |key: &str| {
        [
            ("/".to_owned(), "cookie", format!("a=1; __session={key}")),
            (format!("/?cd_token={key}"), "x-none", String::new()),
            ("/".to_owned(), "authorization", format!("Bearer {key}")),
            ("/".to_owned(), "x-api-key", key.to_owned()),
        ]
    };
    let keys = [
        (site.key_of("ada", None), 200, ""),
        (site.key_of("bob", None), 401, "Invalid or expired token"),
        (site.key_of("ada", Some(Timestamp(1))), 401, "Revoked token"),
        ("dwell_0".to_owned(), 401, "Invalid or expired token"),
    ];
    for (key, status, detail) in &keys {
        for (target, name, value) in ways(key) {
            let response = site.get(&target, &[(name, &value)]).await;
            assert_eq!(response.status(), *status, "{target} {name}");
            assert!(text(&response).contains(detail), "{}", text(&response));
            assert!(!text(&response).contains(key), "the app sees it: {name}");
        }
    }
    let response = site.get("/", &[]).await;
    assert_eq!(response.status(), 401);
    assert_eq!(text(&response), r#"{"detail":"Invalid or missing token"}"#);
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
}

#[tokio::test]
async fn a_private_session_does_not_tell_strangers_how_it_ended() {
    let site = private_site().await;
    site.publish(Route {
        access: Access::Private,
        ..route(1, ended())
    })
    .await;
    assert_eq!(site.get("/", &[]).await.status(), 401);
}

#[tokio::test]
async fn a_person_who_opens_a_private_session_by_key_can_load_all_of_it() {
    let site = private_site().await;
    let key = site.key_of("ada", None);
    let page = [("accept", "text/html")];
    let entry = site.get(&format!("/lab?x=1&cd_token={key}"), &page).await;
    assert_eq!(entry.status(), 303);
    assert_eq!(entry.headers()["location"], "/lab?x=1");
    let cookie = entry.headers()["set-cookie"].to_str().unwrap();
    assert!(
        cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax"),
        "{cookie}"
    );
    let cookie = cookie.split(';').next().unwrap();
    let response = site.get("/lab/app.js", &[("cookie", cookie)]).await;
    assert_eq!(response.status(), 200);
    assert!(!text(&response).contains(&key), "the app sees the key");
    // No entry to elsewhere, and no key kept that does not open.
    for path in ["//evil.example/", "/\\evil.example/"] {
        let target = format!("{path}?cd_token={key}");
        let head = format!("GET {target} HTTP/1.1\r\nhost: h\r\naccept: text/html\r\n");
        let got = site.raw(&format!("{head}connection: close\r\n\r\n")).await;
        assert!(!got.contains("location"), "{got}");
    }
    let with_cookie = [("accept", "text/html"), ("cookie", cookie)];
    let response = site.get("/?cd_token=dwell_0", &with_cookie).await;
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn cookies_do_not_count_for_pages_of_other_origins() {
    let site = private_site().await;
    let cookie = format!("__session={}", site.key_of("ada", None));
    let own = [
        ("cookie", cookie.as_str()),
        ("origin", "http://gpu.example:8"),
    ];
    assert_eq!(site.get("/", &own).await.status(), 200);
    let other = [
        ("cookie", cookie.as_str()),
        ("origin", "http://gpu.example:9"),
    ];
    assert_eq!(site.get("/", &other).await.status(), 401);
}

#[tokio::test]
async fn an_app_never_sees_our_keys_and_always_its_own() {
    let app = App::mirror().await;
    let site = Site::of(app.at).await;
    let key = site.key_of("bob", None);
    let cookies = format!("own=1; __session={key}; __dwell_80={key}");
    let bearer = format!("Bearer {key}");
    let referer = format!("http://gpu.example:8/?cd_token={key}");
    let ours = [
        ("cookie", cookies.as_str()),
        ("authorization", bearer.as_str()),
        ("x-api-key", key.as_str()),
        ("referer", referer.as_str()),
    ];
    let response = site.get(&format!("/p?a=1&cd_token={key}&b=2"), &ours).await;
    let seen = text(&response);
    assert!(!seen.contains(&key), "{seen}");
    assert!(seen.starts_with("GET /p?a=1&b=2 "), "{seen}");
    assert!(seen.contains("\ncookie: own=1\n"), "{seen}");
    let own = [
        ("cookie", "_xsrf=\"2|a\"; other=1"),
        ("authorization", "token 0123"),
        ("x-api-key", "sk-0123"),
    ];
    let response = site.get("/?token=1", &own).await;
    for (name, value) in own {
        assert!(text(&response).contains(&format!("\n{name}: {value}\n")));
    }
}

#[tokio::test]
async fn an_app_sets_its_own_cookies_and_none_of_ours() {
    let app = App::new(|_| async {
        let mut response = Response::new(body(""));
        for cookie in [
            "own=1; Path=/",
            "__session=dwell_0; Path=/",
            "__dwell_80=dwell_0",
            " __session =x",
            "__sessions=theirs",
        ] {
            let cookie = cookie.parse().unwrap();
            response.headers_mut().append("set-cookie", cookie);
        }
        response
    })
    .await;
    let response = Site::of(app.at).await.get("/", &[]).await;
    let set: Vec<_> = response.headers().get_all("set-cookie").iter().collect();
    assert_eq!(set, ["own=1; Path=/", "__sessions=theirs"]);
}

const PREFLIGHT: [(&str, &str); 4] = [
    ("origin", "https://app.example"),
    ("access-control-request-method", "PUT"),
    ("access-control-request-headers", "x-a, authorization"),
    ("access-control-request-private-network", "true"),
];

#[tokio::test]
async fn preflights_are_answered_whatever_the_session_does() {
    for status in [RouteStatus::Starting, ended()] {
        let site = Site::new(Route {
            access: Access::Private,
            ..route(1, status)
        })
        .await;
        let response = site.send(request("OPTIONS", "/x", &PREFLIGHT, "")).await;
        assert_eq!(response.status(), 204);
        for (name, value) in [
            ("access-control-allow-origin", "https://app.example"),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-methods", "PUT"),
            ("access-control-allow-headers", "x-a, authorization"),
            ("access-control-allow-private-network", "true"),
        ] {
            assert_eq!(response.headers()[name], value);
        }
        assert!(response.headers().contains_key("access-control-max-age"));
    }
}

#[tokio::test]
async fn a_plain_options_request_is_the_apps() {
    let app = App::mirror().await;
    let site = Site::of(app.at).await;
    for target in ["/", "*"] {
        let response = site.send(request("OPTIONS", target, &[], "")).await;
        let line = format!("OPTIONS {target} ");
        assert!(text(&response).starts_with(&line), "{}", text(&response));
    }
}

#[tokio::test]
async fn other_origins_may_read_unless_the_app_says_otherwise() {
    let origin = [("origin", "https://app.example")];
    let site = Site::of(App::mirror().await.at).await;
    let response = site.get("/", &origin).await;
    assert_eq!(
        response.headers()["access-control-allow-origin"],
        "https://app.example"
    );
    assert!(
        !response
            .headers()
            .contains_key("access-control-allow-credentials")
    );
    let response = site.get("/", &[("origin", "http://gpu.example:8")]).await;
    assert!(
        !response
            .headers()
            .contains_key("access-control-allow-origin")
    );
    // What the gateway says itself can be read too.
    site.publish(route(1, RouteStatus::Starting)).await;
    let response = site.get("/", &origin).await;
    assert_eq!(
        response.headers()["access-control-allow-origin"],
        "https://app.example"
    );

    let strict = App::new(|_| async {
        let response = Response::builder().header("access-control-allow-origin", "https://own");
        response.body(body("")).unwrap()
    })
    .await;
    let response = Site::of(strict.at).await.get("/", &origin).await;
    assert_eq!(
        response.headers()["access-control-allow-origin"],
        "https://own"
    );
}

const ADA: SessionId = SessionId(Uuid::from_u128(1));

/// A link to session 1, and its secret.
fn share(site: &Site, scope: Scope, expires_at: Option<Timestamp>) -> (Share, String) {
    let secret = Admission::new_share_secret().unwrap();
    let share = Share {
        id: ShareId(Uuid::new_v4()),
        session: ADA,
        owner: Owner::User(UserId("ada".to_owned())),
        name: "for bob".to_owned(),
        hash: keys::hash(&secret),
        scope,
        created_by: UserId("ada".to_owned()),
        created_at: Timestamp(0),
        expires_at,
        revoked: None,
        visits: 0,
        recent_visits: Vec::new(),
    };
    site.admission.shares.publish(share.clone());
    (share, secret)
}

/// Enter by that secret as a person does; the cookie that is kept.
async fn entered(site: &Site, secret: &str) -> String {
    let page = [("accept", "text/html")];
    let entry = site.get(&format!("/lab?cd_token={secret}"), &page).await;
    assert_eq!(entry.status(), 303, "{}", text(&entry));
    assert_eq!(entry.headers()["location"], "/lab");
    let cookie = entry.headers()["set-cookie"].to_str().unwrap();
    assert!(!cookie.contains(secret), "it would be kept: {cookie}");
    cookie.split(';').next().unwrap().to_owned()
}

async fn status_with(site: &Site, method: &str, cookie: &str) -> u16 {
    let request = request(method, "/lab", &[("cookie", cookie)], "");
    site.send(request).await.status().as_u16()
}

#[tokio::test]
async fn a_share_link_opens_its_session_until_it_is_revoked_or_expires() {
    let site = private_site().await;
    let (link, secret) = share(&site, Scope::Use, None);
    let cookie = entered(&site, &secret).await;
    assert_eq!(status_with(&site, "POST", &cookie).await, 200);
    let bearer = format!("Bearer {secret}");
    let response = site.get("/", &[("authorization", &bearer)]).await;
    assert_eq!(response.status(), 200);
    assert!(!text(&response).contains(&secret), "the app sees it");

    let revoked = Some(Revocation {
        by: UserId("ada".to_owned()),
        at: Timestamp(1),
    });
    site.admission.shares.publish(Share { revoked, ..link });
    assert_eq!(status_with(&site, "GET", &cookie).await, 401);
    let response = site.get("/", &[("authorization", &bearer)]).await;
    assert_eq!(text(&response), r#"{"detail":"Revoked token"}"#);

    let (_, secret) = share(&site, Scope::Use, Some(Timestamp(1)));
    let response = site.get(&format!("/?cd_token={secret}"), &[]).await;
    assert_eq!(text(&response), r#"{"detail":"Invalid or expired token"}"#);
}

#[tokio::test]
async fn a_link_to_look_at_a_session_lets_nobody_do_more() {
    let site = private_site().await;
    let (_, secret) = share(&site, Scope::View, None);
    let cookie = entered(&site, &secret).await;
    for (method, status) in [
        ("GET", 200),
        ("HEAD", 200),
        ("POST", 403),
        ("PUT", 403),
        ("DELETE", 403),
        ("PATCH", 403),
    ] {
        assert_eq!(
            status_with(&site, method, &cookie).await,
            status,
            "{method}"
        );
    }
    let upgrade = [
        ("cookie", cookie.as_str()),
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
    ];
    assert_eq!(site.get("/lab", &upgrade).await.status(), 403);
    // Who has a key besides is not held to it.
    let key = format!("Bearer {}", site.key_of("ada", None));
    let both = [("cookie", cookie.as_str()), ("authorization", &key)];
    let response = site.send(request("POST", "/", &both, "")).await;
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn what_opens_one_session_opens_no_other() {
    let site = private_site().await;
    let (_, secret) = share(&site, Scope::Use, None);
    let cookie = entered(&site, &secret).await;
    let token = format!("Bearer {}", site.admission.token(ADA));
    let response = site.get("/", &[("authorization", &token)]).await;
    assert_eq!(response.status(), 200);
    let key = site
        .admission
        .keys
        .check(&site.key_of("ada", None))
        .unwrap()
        .0;
    let (ticket, _) = site.admission.ticket(ADA, key).unwrap();
    let app = App::mirror().await;
    site.publish(Route {
        access: Access::Private,
        ..route(2, running(app.at))
    })
    .await;
    for (target, name, value) in [
        ("/".to_owned(), "cookie", cookie),
        ("/".to_owned(), "authorization", token),
        ("/".to_owned(), "authorization", format!("Bearer {secret}")),
        (format!("/?cd_token={ticket}"), "x-none", String::new()),
    ] {
        let response = site.get(&target, &[(name, &value)]).await;
        assert_eq!(response.status(), 401, "{name}: {value}");
    }
}

#[tokio::test]
async fn a_ticket_lets_in_once_and_only_as_long_as_its_key_is_good() {
    let site = private_site().await;
    let secret = site.key_of("ada", None);
    let key = site.admission.keys.check(&secret).unwrap().0;
    let (ticket, _) = site.admission.ticket(ADA, key).unwrap();
    let cookie = entered(&site, &ticket).await;
    assert_eq!(status_with(&site, "POST", &cookie).await, 200);
    let again = site.get(&format!("/?cd_token={ticket}"), &[]).await;
    assert_eq!(again.status(), 401);
    site.admission.keys.publish(Key {
        id: key,
        name: "test".to_owned(),
        hash: keys::hash(&secret),
        principal: Principal {
            user: UserId("ada".to_owned()),
            org: None,
            admin: false,
        },
        created_at: Timestamp(0),
        revoked_at: Some(Timestamp(1)),
    });
    assert_eq!(status_with(&site, "GET", &cookie).await, 401);
}

#[tokio::test]
async fn who_comes_by_a_link_is_told_of_once_a_visit() {
    let (admission, mut visits) = Admission::new([7; 32]).unwrap();
    let app = App::mirror().await;
    let private = Route {
        access: Access::Private,
        ..route(1, running(app.at))
    };
    let site = Site::keeping(private, admission, TimeLimits::default()).await;
    let (link, secret) = share(&site, Scope::Use, None);
    let cookie = entered(&site, &secret).await;
    for _ in 0..3 {
        assert_eq!(status_with(&site, "GET", &cookie).await, 200);
    }
    let (session, share, visit) = visits.try_recv().unwrap();
    assert_eq!((session, share), (ADA, link.id));
    assert_eq!(visit.from, site.at.ip());
    assert!(visits.try_recv().is_err(), "one visit, told of twice");
}

#[tokio::test]
async fn by_tls_a_pass_is_kept_in_frames_and_by_this_host_alone() {
    let app = App::mirror().await;
    let (house, host) = House::of(Front::Proxy, app.at).await;
    let private = Route {
        access: Access::Private,
        ..route(1, running(app.at))
    };
    house.gateway.publish(0, private).await.unwrap();
    let token = house.admission.token(ADA);
    let head =
        format!("GET /lab?cd_token={token} HTTP/1.1\r\nhost: {host}\r\naccept: text/html\r\n");
    let answer = house.raw(&format!("{head}connection: close\r\n\r\n")).await;
    let cookie = answer
        .lines()
        .find_map(|line| line.strip_prefix("set-cookie: "))
        .unwrap();
    assert!(cookie.starts_with("__Host-dwell=dwell_pass_"), "{cookie}");
    let manner = "; Path=/; HttpOnly; Secure; SameSite=None; Partitioned";
    assert!(cookie.ends_with(manner), "{cookie}");
    let pass = cookie.split(';').next().unwrap();
    let head = format!("GET /lab HTTP/1.1\r\nhost: {host}\r\ncookie: own=1; {pass}\r\n");
    let seen = house.raw(&format!("{head}connection: close\r\n\r\n")).await;
    assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
    assert!(seen.contains("cookie: own=1\n"), "{seen}");
    assert!(!seen.contains("dwell_pass_"), "the app sees it: {seen}");
}

#[tokio::test]
async fn a_person_who_may_not_pass_is_shown_where_to_sign_in() {
    let site = private_site().await;
    let page = [("accept", "text/html")];
    let response = site.get("/lab?folder=/x&cd_token=dwell_0", &page).await;
    assert_eq!(response.status(), 401);
    let way = format!(
        "/signin?session={}&amp;path=%2Flab%3Ffolder%3D%2Fx\"",
        ADA.0
    );
    assert!(text(&response).contains(&way), "{}", text(&response));
    assert!(!text(&response).contains("dwell_0"), "{}", text(&response));
}

#[tokio::test]
async fn an_apps_cookie_is_for_its_own_host_alone() {
    let app = App::new(|_| async {
        let response = Response::builder().header("set-cookie", "a=1; Domain=gpu.example; Path=/");
        response.body(body("")).unwrap()
    })
    .await;
    let response = Site::of(app.at).await.get("/", &[]).await;
    assert_eq!(response.headers()["set-cookie"], "a=1; Path=/");
}
