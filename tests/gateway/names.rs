//! Sessions that have a name each, on the listener that the API is on.

use tokio::io::AsyncWriteExt;

use crate::house::*;
use crate::support::*;

/// An app that says this.
async fn saying(what: &'static str) -> App {
    App::new(move |_| async move { hyper::Response::new(body(what)) }).await
}

fn get(host: &str, line: &str) -> String {
    format!("GET / HTTP/1.1\r\nhost: {host}\r\n{line}\r\n")
}

fn last(host: &str) -> String {
    get(host, "connection: close\r\n")
}

#[tokio::test]
async fn each_session_answers_to_its_own_name_and_the_api_to_all_others() {
    let (one, two) = (saying("one").await, saying("two").await);
    let (house, first) = House::of(Front::Clear, one.at).await;
    let second = house.publish(2, running(two.at)).await;
    let port = house.at.port();
    for (host, answer) in [
        (first.clone(), "one"),
        (second, "two"),
        (first.to_ascii_uppercase(), "one"),
        (format!("127.0.0.1:{port}"), "the API"),
        (format!("{DOMAIN}:{port}"), "the API"),
        (format!("{first}.evil.test"), "the API"),
        (format!("x{DOMAIN}"), "the API"),
    ] {
        let got = house.raw(&last(&host)).await;
        assert!(got.ends_with(answer), "{host}: {got}");
    }
}

#[tokio::test]
async fn a_name_that_is_no_sessions_tells_nothing_and_asks_nobody() {
    let app = saying("one").await;
    let (house, host) = House::of(Front::Clear, app.at).await;
    let nobody = |host: String| {
        let house = &house;
        async move {
            let got = house.raw(&last(&host)).await;
            let lines = got.split("\r\n").filter(|line| !line.starts_with("date: "));
            lines.collect::<Vec<_>>().join("\n")
        }
    };
    let first = nobody(format!("{:032x}.{DOMAIN}", 7)).await;
    assert!(first.starts_with("HTTP/1.1 404 "), "{first}");
    for other in [
        format!("x.{host}"),
        format!("www.{DOMAIN}"),
        format!(".{DOMAIN}"),
        host.split_at(1).1.to_owned(),
    ] {
        assert_eq!(nobody(other.clone()).await, first, "{other}");
    }
    assert_eq!(app.connections(), 0);
}

#[tokio::test]
async fn requests_of_one_connection_go_where_each_of_them_says() {
    let (one, two) = (saying("one").await, saying("two").await);
    let (house, first) = House::of(Front::Clear, one.at).await;
    let second = house.publish(2, running(two.at)).await;
    // As a proxy in front would send them, and all before the first answer.
    let hosts = [&first, &first, &second, &first, &second];
    let asked: String = hosts.iter().map(|host| get(host, "")).collect();
    let got = house.raw(&(asked + &last(DOMAIN))).await;
    let answers: Vec<_> = got
        .split("HTTP/1.1 200 OK")
        .skip(1)
        .map(|answer| answer.split_once("\r\n\r\n").unwrap().1)
        .collect();
    assert_eq!(answers, ["one", "one", "two", "one", "two", "the API"]);
}

#[tokio::test]
async fn a_connection_that_the_api_serves_is_no_way_to_a_session() {
    let app = saying("one").await;
    let (house, host) = House::of(Front::Clear, app.at).await;
    let got = house.raw(&(get(DOMAIN, "") + &get(&host, ""))).await;
    let (_, second) = got.split_once("the API").unwrap();
    assert!(second.starts_with("HTTP/1.1 421 "), "{second}");
    assert_eq!(app.connections(), 0);
}

#[tokio::test]
async fn an_absolute_target_says_the_host() {
    let (one, two) = (saying("one").await, saying("two").await);
    let (house, first) = House::of(Front::Clear, one.at).await;
    let second = house.publish(2, running(two.at)).await;
    let asked = last(&first).replace("GET /", &format!("GET http://{second}/"));
    let got = house.raw(&asked).await;
    assert!(got.ends_with("two"), "{got}");
}

#[tokio::test]
async fn an_app_is_told_what_its_visitor_speaks_to_the_proxy_in_front() {
    let (house, host) = House::of(Front::Proxy, App::mirror().await.at).await;
    let got = house.raw(&last(&host)).await;
    assert!(got.contains("\nx-forwarded-proto: https\n"), "{got}");
    assert!(got.contains(&format!("\nhost: {host}\n")), "{got}");
}

#[tokio::test]
async fn a_session_that_ends_closes_its_own_connections_and_no_others() {
    let (one, two) = (saying("one").await, saying("two").await);
    let (house, first) = House::of(Front::Clear, one.at).await;
    let second = house.publish(2, running(two.at)).await;
    let mut visitors = Vec::new();
    for host in [&first, &second] {
        let mut visitor = house.visitor().await;
        visitor
            .send(request("GET", "/", &[("host", host)], ""))
            .await;
        visitors.push(visitor);
    }
    house.publish(1, ended()).await;
    visitors[0].is_closed().await;
    let again = request("GET", "/", &[("host", &second)], "");
    assert_eq!(text(&visitors[1].send(again).await), "two");
    let got = house.raw(&last(&first)).await;
    assert!(got.starts_with("HTTP/1.1 410 "), "{got}");
}

#[tokio::test]
async fn nobody_who_says_nothing_is_waited_for() {
    let limits = dwell::gateway::TimeLimits {
        head: std::time::Duration::from_millis(100),
        ..Default::default()
    };
    let house = House::with(Front::Clear, limits).await;
    assert_eq!(house.raw("").await, "");
    let mut slow = house.connect().await;
    slow.write_all(b"GET / HTTP/1.1\r\nhost: ").await.unwrap();
    assert_eq!(read_to_end(&mut slow).await, "");
}
