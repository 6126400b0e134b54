//! What passes between a visitor and an app, and how it is changed.

use http_body_util::BodyExt;
use hyper::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let app = App::mirror().await;
    let site = Site::of(app.at).await;
    let mut visitor = site.visitor().await;
    for _ in 0..5 {
        let response = visitor.send(request("GET", "/", &[], "")).await;
        assert_eq!(response.status(), 200);
    }
    assert_eq!(app.connections(), 1);
}

#[tokio::test]
async fn an_app_is_not_kept_busy_with_connections_that_nobody_uses() {
    let (closed, mut is_closed) = tokio::sync::mpsc::unbounded_channel();
    let at = raw_app(move |mut stream, _| {
        let closed = closed.clone();
        async move {
            read_head(&mut stream).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(answer).await.unwrap();
            read_to_end(&mut stream).await;
            closed.send(()).unwrap();
        }
    })
    .await;
    let site = Site::of(at).await;
    let mut visitor = site.visitor().await;
    visitor.send(request("GET", "/", &[], "")).await;
    soon(is_closed.recv()).await.unwrap();
    assert!(!visitor.sender.is_closed());
}

/// An app whose first connection answers once and breaks off at the second request.
async fn app_that_breaks_off() -> std::net::SocketAddr {
    raw_app(|mut stream, number| async move {
        loop {
            let head = read_head(&mut stream).await;
            if head.is_empty() || (number == 0 && head.contains("/second")) {
                return;
            }
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await
}

#[tokio::test]
async fn a_request_is_repeated_on_a_new_connection_if_the_kept_one_was_closed() {
    let site = Site::of(app_that_breaks_off().await).await;
    let mut visitor = site.visitor().await;
    for (path, number) in [("/first", "0"), ("/second", "1")] {
        let response = visitor.send(request("GET", path, &[], "")).await;
        assert_eq!(text(&response), number);
    }
}

#[tokio::test]
async fn a_request_that_does_something_is_never_repeated() {
    let site = Site::of(app_that_breaks_off().await).await;
    let mut visitor = site.visitor().await;
    let response = visitor.send(request("GET", "/first", &[], "")).await;
    assert_eq!(text(&response), "0");
    let response = visitor.send(request("POST", "/second", &[], "")).await;
    assert_eq!(response.status(), 502);
    assert!(text(&response).contains("closed the connection before it answered"));
}

#[tokio::test]
async fn an_app_that_answers_garbage_is_a_502() {
    let at = raw_app(|mut stream, _| async move {
        stream.write_all(b"SSH-2.0-dropbear\r\n").await.unwrap();
        read_to_end(&mut stream).await;
    })
    .await;
    assert_eq!(Site::of(at).await.get("/", &[]).await.status(), 502);
}

#[tokio::test]
async fn an_app_sees_the_visitors_request_and_where_it_comes_from() {
    let app = App::mirror().await;
    let site = Site::of(app.at).await;
    let response = site
        .get(
            "/a%20b//c/../?q=1&q=%2F;x",
            &[("x-own", "kept"), ("x-forwarded-for", "9.9.9.9")],
        )
        .await;
    let seen = text(&response);
    assert!(
        seen.starts_with("GET /a%20b//c/../?q=1&q=%2F;x HTTP/1.1\n"),
        "{seen}"
    );
    for line in [
        "host: gpu.example:8\n",
        "x-own: kept\n",
        "x-forwarded-for: 9.9.9.9, 127.0.0.1\n",
        "x-forwarded-host: gpu.example:8\n",
        "x-forwarded-proto: http\n",
        "forwarded: for=127.0.0.1;proto=http\n",
    ] {
        assert!(seen.contains(line), "{line}is missing in\n{seen}");
    }
}

/// Apps that let only their own pages in compare the origin with any of these, and not all
/// of them know that a value may be quoted.
#[tokio::test]
async fn an_app_reads_its_host_the_same_wherever_it_looks() {
    let site = Site::of(App::mirror().await.at).await;
    let theirs = ("forwarded", "for=9.9.9.9");
    let response = site.get("/", &[theirs]).await;
    let seen = text(&response);
    let said = |name: &str| {
        let mut lines = seen.lines().filter_map(|line| line.strip_prefix(name));
        lines.next().unwrap().to_owned()
    };
    assert_eq!(said("x-forwarded-host: "), said("host: "));
    let forwarded = said("forwarded: ");
    let mut pairs = forwarded.split([';', ',']).map(str::trim);
    assert!(pairs.all(|pair| !pair.starts_with("host=")), "{forwarded}");
}

#[tokio::test]
async fn headers_about_one_connection_go_no_further() {
    let at = raw_app(|mut stream, _| async move {
        let head = read_head(&mut stream).await.to_ascii_lowercase();
        assert!(
            !head.contains("connection") && !head.contains("x-hop"),
            "{head}"
        );
        let answer = "HTTP/1.1 200 OK\r\nconnection: keep-alive, x-back\r\nx-back: 1\r\n\
             keep-alive: timeout=5\r\nx-kept: 1\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        read_to_end(&mut stream).await;
    })
    .await;
    let site = Site::of(at).await;
    let hop = [
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("proxy-connection", "keep-alive"),
    ];
    let response = site.get("/", &hop).await;
    assert_eq!(response.headers()["x-kept"], "1");
    for gone in ["connection", "keep-alive", "x-back"] {
        assert!(!response.headers().contains_key(gone), "{gone}");
    }
}

#[tokio::test]
async fn no_visitor_has_taken_away_what_an_app_must_know() {
    let at = raw_app(|mut stream, _| async move {
        let head = read_head(&mut stream).await.to_ascii_lowercase();
        for line in [
            "host: h\r\n",
            "content-length: 5\r\n",
            "x-forwarded-proto: http\r\n",
            "x-forwarded-host: h\r\n",
            "forwarded: for=127.0.0.1;proto=http\r\n",
        ] {
            assert!(head.contains(line), "{line} is missing in {head}");
        }
        let from = head.split("x-forwarded-for: ").nth(1).unwrap();
        assert!(
            from.lines().next().unwrap().ends_with("127.0.0.1"),
            "{head}"
        );
        let mut content = [0; 5];
        stream.read_exact(&mut content).await.unwrap();
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: content-length\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        stream.write_all(&content).await.unwrap();
    })
    .await;
    let got = Site::of(at)
        .await
        .raw(
            "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\nx-forwarded-for: 9.9.9.9\r\n\
             connection: close, x-forwarded-for, x-forwarded-proto, x-forwarded-host, forwarded, \
             host, content-length\r\n\r\nhello",
        )
        .await;
    let (head, content) = got.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-length: 5"), "{head}");
    assert_eq!(content, "hello");
}

#[tokio::test]
async fn a_range_is_the_apps_to_answer() {
    let app = App::new(|request| async move {
        let content = "0123456789";
        let range = request.headers().get("range").unwrap().to_str().unwrap();
        let response = Response::builder()
            .header("accept-ranges", "bytes")
            .header("etag", "\"1\"");
        let range = range.strip_prefix("bytes=").unwrap().split_once('-');
        let (from, to) = range.unwrap();
        let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
        if to >= content.len() {
            let response = response.status(416).header("content-range", "bytes */10");
            return response.body(body("")).unwrap();
        }
        assert_eq!(request.headers()["if-range"], "\"1\"");
        response
            .status(206)
            .header("content-range", format!("bytes {from}-{to}/10"))
            .body(body(&content[from..=to]))
            .unwrap()
    })
    .await;
    let site = Site::of(app.at).await;
    let mut visitor = site.visitor().await;
    for (range, status, said, content) in [
        ("bytes=2-5", 206, "bytes 2-5/10", "2345"),
        ("bytes=9-9", 206, "bytes 9-9/10", "9"),
        ("bytes=5-99", 416, "bytes */10", ""),
        ("bytes=0-0", 206, "bytes 0-0/10", "0"),
    ] {
        let asked = [("range", range), ("if-range", "\"1\"")];
        let response = visitor.send(request("GET", "/", &asked, "")).await;
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()["content-range"], said);
        assert_eq!(response.headers()["accept-ranges"], "bytes");
        assert_eq!(text(&response), content);
    }
}

#[tokio::test]
async fn head_gets_the_length_and_no_body() {
    let at = raw_app(|mut stream, _| async move {
        while read_head(&mut stream).await.starts_with("HEAD") {
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        }
    })
    .await;
    let site = Site::of(at).await;
    let mut visitor = site.visitor().await;
    for _ in 0..2 {
        let response = visitor.send(request("HEAD", "/", &[], "")).await;
        assert_eq!(response.headers()["content-length"], "1234");
        assert!(response.body().is_empty());
    }
}

#[tokio::test]
async fn a_visitor_of_http_1_0_gets_what_it_understands() {
    let at = raw_app(|mut stream, _| async move {
        let head = read_head(&mut stream).await;
        assert!(head.starts_with("GET /old HTTP/1.1\r\n") && head.contains("\r\nhost: "));
        let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        read_to_end(&mut stream).await;
    })
    .await;
    let got = Site::of(at).await.raw("GET /old HTTP/1.0\r\n\r\n").await;
    let (head, content) = got.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.0 200 OK"), "{head}");
    assert!(!head.contains("chunked"), "{head}");
    assert_eq!(content, "hi");
}

#[tokio::test]
async fn an_app_of_http_1_0_is_understood() {
    let at = raw_app(|mut stream, _| async move {
        read_head(&mut stream).await;
        stream
            .write_all(b"HTTP/1.0 200 Fine\r\n\r\nto the end")
            .await
            .unwrap();
    })
    .await;
    let site = Site::of(at).await;
    let mut visitor = site.visitor().await;
    for _ in 0..2 {
        let response = visitor.send(request("GET", "/", &[], "")).await;
        assert_eq!(text(&response), "to the end");
    }
}

#[tokio::test]
async fn who_expects_100_continue_gets_it_before_the_body_is_sent() {
    let app = App::new(|request| async move {
        assert!(!request.headers().contains_key("expect"));
        Response::new(body(
            request.into_body().collect().await.unwrap().to_bytes(),
        ))
    })
    .await;
    let site = Site::of(app.at).await;
    let mut stream = site.connect().await;
    let head = "POST / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\n\
         connection: close\r\ncontent-length: 5\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(
        read_head(&mut stream).await,
        "HTTP/1.1 100 Continue\r\n\r\n"
    );
    stream.write_all(b"hello").await.unwrap();
    assert!(read_to_end(&mut stream).await.ends_with("\r\n\r\nhello"));
}

#[tokio::test]
async fn who_has_begun_already_is_not_told_to_continue() {
    let app = App::new(|request| async move {
        let read = request.into_body().collect().await.unwrap();
        Response::new(body(read.to_bytes()))
    })
    .await;
    let got = Site::of(app.at)
        .await
        .raw(
            "POST / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\nconnection: close\r\n\
             content-length: 5\r\n\r\nhello",
        )
        .await;
    assert!(got.starts_with("HTTP/1.1 200"), "{got}");
    assert!(got.ends_with("\r\n\r\nhello"), "{got}");
}

#[tokio::test]
async fn an_app_that_refuses_a_body_is_heard_before_it_has_come() {
    let at = raw_app(|mut stream, _| async move {
        read_head(&mut stream).await;
        let answer = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno";
        stream.write_all(answer).await.unwrap();
        read_to_end(&mut stream).await;
    })
    .await;
    let site = Site::of(at).await;
    let mut stream = site.connect().await;
    let head = "POST / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\n\
         content-length: 1000000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let got = read_to_end(&mut stream).await;
    let got = got.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap();
    assert!(got.starts_with("HTTP/1.1 413"), "{got}");
    assert!(got.ends_with("\r\n\r\nno"), "{got}");
}

#[tokio::test]
async fn nobody_is_told_to_continue_who_will_not_be_heard() {
    let site = Site::new(route(1, ended())).await;
    let head = "POST / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
    let got = site.raw(head).await;
    assert!(got.starts_with("HTTP/1.1 410 Gone"), "{got}");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let app =
        App::new(|request| async move { Response::new(body(request.uri().path().to_owned())) })
            .await;
    let site = Site::of(app.at).await;
    let got = site
        .raw(
            "GET /one HTTP/1.1\r\nhost: h\r\n\r\nGET /two HTTP/1.1\r\nhost: h\r\n\r\n\
             GET /three HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
        )
        .await;
    let at = |path| got.find(path).expect("all are answered");
    assert!(at("/one") < at("/two") && at("/two") < at("/three"));
}

#[tokio::test]
async fn two_hundred_visitors_at_once_all_get_their_own_answer() {
    let app =
        App::new(|request| async move { Response::new(body(request.uri().path().to_owned())) })
            .await;
    let site = std::sync::Arc::new(Site::of(app.at).await);
    let visits: Vec<_> = (0..200)
        .map(|number| {
            let site = std::sync::Arc::clone(&site);
            tokio::spawn(async move {
                let mut visitor = site.visitor().await;
                for round in 0..3 {
                    let path = format!("/{number}/{round}");
                    let response = visitor.send(request("GET", &path, &[], "")).await;
                    assert_eq!(text(&response), path);
                }
            })
        })
        .collect();
    for visit in visits {
        soon(visit).await.unwrap();
    }
}
