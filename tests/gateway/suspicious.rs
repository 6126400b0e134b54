//! Requests and answers that are malformed, too large, or made to be misunderstood.

use tokio::io::AsyncWriteExt;

use crate::support::*;

async fn status_of(request: &str) -> String {
    let site = Site::of(App::mirror().await.at).await;
    let got = site.raw(request).await;
    got.get(9..12).unwrap_or("none").to_owned()
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused() {
    let long = "x".repeat(70_000);
    let many: String = (0..120).map(|n| format!("x-{n}: 1\r\n")).collect();
    let endless = "x".repeat(200_000);
    for (request, status) in [
        (
            format!("GET / HTTP/1.1\r\nhost: h\r\nx: {long}\r\n\r\n"),
            "431",
        ),
        (format!("GET / HTTP/1.1\r\nhost: h\r\n{many}\r\n"), "431"),
        (format!("GET /{long} HTTP/1.1\r\nhost: h\r\n\r\n"), "431"),
    ] {
        assert_eq!(status_of(&request).await, status);
    }
    // Refused before it ends; whether the answer arrives is up to the network.
    let got = status_of(&format!("GET / HTTP/1.1\r\nhost: h\r\nx: {endless}")).await;
    assert!(["431", "none"].contains(&got.as_str()), "{got}");
}

#[tokio::test]
async fn requests_that_could_be_understood_in_two_ways_are_refused() {
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: h\r\nx : 1\r\n\r\n", "400"),
        (
            "GET / HTTP/1.1\r\nhost: h\r\nx: 1\r\n folded\r\n\r\n",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: +5\r\n\r\nhello",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: gzip\r\n\r\n",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
            "400",
        ),
        (
            "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "501",
        ),
        (
            "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5, 5\r\n\r\nhello",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\
             transfer-encoding: identity\r\n\r\n0\r\n\r\n",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
            "501",
        ),
        (
            "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nhost: h\r\ntransfer_encoding: x\r\ncontent-length: 0x5\r\n\r\nhello",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 99999999999999999999\r\n\r\n",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nhost: h\r\ncontent-length:\r\n\r\n",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n\
             10000000000000005\r\nhello\r\n0\r\n\r\n",
            "400",
        ),
        ("GET / HTTP/1.1\r\n host: h\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: h\r\n: 1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: h, i\r\n\r\n", "400"),
        ("GET / HTTP/1.1 \r\nhost: h\r\n\r\n", "400"),
        ("GET  / HTTP/1.1\r\nhost: h\r\n\r\n", "400"),
        ("GET\t/ HTTP/1.1\r\nhost: h\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: h\r\nx\0y: 1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: h\r\nx: a\0b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: h\r\nx: a\rb\r\n\r\n", "400"),
        ("GET /a b HTTP/1.1\r\nhost: h\r\n\r\n", "400"),
        ("GET http://a@b/ HTTP/1.1\r\nhost: h\r\n\r\n", "400"),
        ("GET p HTTP/1.1\r\nhost: h\r\n\r\n", "400"),
        ("CONNECT h:1 HTTP/1.1\r\nhost: h:1\r\n\r\n", "405"),
        // Who speaks HTTP/2 would not understand an answer in HTTP/1.1.
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "none"),
    ] {
        assert_eq!(status_of(request).await, status, "{request:?}");
    }
}

#[tokio::test]
async fn a_chunked_request_has_no_other_length_and_nothing_may_follow_it() {
    for lengths in [
        "content-length: 30\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 30",
    ] {
        let at = raw_app(|mut stream, _| async move {
            let head = read_head(&mut stream).await.to_ascii_lowercase();
            assert!(
                head.contains("chunked") && !head.contains("content-length"),
                "{head}"
            );
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfirst";
            stream.write_all(answer).await.unwrap();
            assert!(!read_to_end(&mut stream).await.contains("smuggled"));
        })
        .await;
        let got = Site::of(at)
            .await
            .raw(&format!(
                "POST / HTTP/1.1\r\nhost: h\r\n{lengths}\r\n\r\n0\r\n\r\n\
                 GET /smuggled HTTP/1.1\r\nhost: h\r\n\r\n"
            ))
            .await;
        assert!(got.ends_with("first"), "{got}");
        assert_eq!(got.matches("HTTP/1.1").count(), 1, "{got}");
    }
}

#[tokio::test]
async fn an_answer_with_two_lengths_is_as_long_as_its_chunks() {
    let at = raw_app(|mut stream, _| async move {
        read_head(&mut stream).await;
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n\
            5\r\nhello\r\n0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        read_to_end(&mut stream).await;
    })
    .await;
    let response = Site::of(at).await.get("/", &[]).await;
    assert!(!response.headers().contains_key("content-length"));
    assert_eq!(text(&response), "hello");
}

#[tokio::test]
async fn an_answer_that_could_be_understood_in_two_ways_is_passed_on_to_nobody() {
    for head in [
        "content-length: 5\r\ncontent-length: 6",
        "content-length: +5",
        "transfer-encoding: gzip",
        "transfer-encoding: gzip, chunked",
        "x : 1",
        "x: a\0b",
    ] {
        let at = raw_app(move |mut stream, _| async move {
            read_head(&mut stream).await;
            let answer = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\nhello!");
            stream.write_all(answer.as_bytes()).await.unwrap();
            read_to_end(&mut stream).await;
        })
        .await;
        let response = Site::of(at).await.get("/", &[]).await;
        assert_eq!(response.status(), 502, "{head:?}");
    }
}

#[tokio::test]
async fn an_answer_nobody_asked_for_is_given_to_nobody() {
    let at = raw_app(|mut stream, number| async move {
        read_head(&mut stream).await;
        let one = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}");
        let two = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
        stream.write_all(one.as_bytes()).await.unwrap();
        stream.write_all(two).await.unwrap();
        read_to_end(&mut stream).await;
    })
    .await;
    let site = Site::of(at).await;
    for _ in 0..3 {
        let response = site.get("/", &[]).await;
        assert_ne!(text(&response), "poison");
    }
}

#[tokio::test]
async fn a_target_that_names_a_host_is_taken_as_a_path() {
    let site = Site::of(App::mirror().await.at).await;
    let got = site
        .raw("GET http://other:1/p?q HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
        .await;
    assert!(
        got.contains("GET /p?q HTTP/1.1") && got.contains("host: other:1"),
        "{got}"
    );
}
