//! Who may pass, what of theirs passes with them, and what scripts are told.

use dwell::gateway::{Route, RouteStatus};
use dwell_core::machine::Access;
use dwell_core::time::Timestamp;
use hyper::Response;

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
