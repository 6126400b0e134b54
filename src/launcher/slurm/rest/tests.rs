//! Against stand-ins that answer as slurmrestd does.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request as Asked;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::net::TcpListener;

use super::*;

/// What it was asked, with the user and token that it was told.
type Requests = Arc<Mutex<Vec<String>>>;

/// One that answers so to each path.
async fn stand_in(answers: fn(&str) -> Option<(StatusCode, Value)>) -> (Rest, Requests) {
    let requests = Requests::default();
    let seen = Arc::clone(&requests);
    let answer = move |asked: Asked| async move {
        let header = |name: HeaderName| {
            let value = asked.headers().get(name);
            value.map_or("-", |it| it.to_str().unwrap()).to_owned()
        };
        let (user, token) = (header(USER_NAME), header(USER_TOKEN));
        let asked = format!("{} {}", asked.method(), asked.uri().path());
        let answer: Response = match answers(&asked) {
            Some((status, json)) => (status, json.to_string()).into_response(),
            None => (StatusCode::NOT_FOUND, "Unable find requested URL").into_response(),
        };
        seen.lock().unwrap().push(format!("{asked} {user} {token}"));
        answer
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, Router::new().fallback(answer)).into_future());
    let rest = Rest::new(RestSettings {
        address: RestAddress::Origin(format!("http://{address}")),
        user: "ada".to_owned(),
        token_file: None,
        certificate: None,
        job: json!({}),
    });
    (rest, requests)
}

fn fine(json: Value) -> Option<(StatusCode, Value)> {
    Some((StatusCode::OK, json))
}

#[tokio::test]
async fn the_newest_version_that_both_know_is_spoken_and_asked_for_once() {
    let (mut rest, requests) = stand_in(|asked| match asked {
        "GET /slurm/v0.0.42/ping" | "GET /slurm/v0.0.40/ping" => fine(json!({})),
        "GET /slurm/v0.0.42/jobs" => fine(json!({"jobs": [
            {"job_id": 1, "name": "a", "user_name": "ada"},
            {"job_id": 2, "name": "a", "user_name": "bob"},
        ]})),
        _ => None,
    })
    .await;
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&token, "SLURM_JWT=secret\n").unwrap();
    rest.settings.token_file = Some(token.path().to_owned());
    for _ in 0..2 {
        let jobs = rest.jobs().await.unwrap();
        let ids: Vec<_> = jobs.iter().map(|job| &*job.id).collect();
        assert_eq!(ids, ["1"]);
    }
    let requests = requests.lock().unwrap();
    assert_eq!(requests.len(), 6, "{requests:?}");
    let is_signed = |asked: &String| asked.ends_with(" ada secret");
    assert!(requests.iter().all(is_signed), "{requests:?}");
}

#[tokio::test]
async fn a_job_that_has_the_id_but_not_the_name_is_left_alone() {
    let (rest, requests) = stand_in(|asked| match asked {
        "GET /slurm/v0.0.38/job/7" => fine(json!({"jobs": [{"job_id": 7, "name": "other"}]})),
        "GET /slurm/v0.0.38/job/8" => Some((
            StatusCode::INTERNAL_SERVER_ERROR,
            json!({"errors": [{"error": "Invalid job id specified"}], "jobs": []}),
        )),
        "GET /slurm/v0.0.38/job/9" => fine(json!({"jobs": [{"job_id": 9, "name": "mine"}]})),
        "GET /slurm/v0.0.38/ping" | "POST /slurm/v0.0.38/job/9" | "DELETE /slurm/v0.0.38/job/9" => {
            fine(json!({}))
        }
        _ => None,
    })
    .await;
    for id in ["7", "9"] {
        let id = JobId(id.to_owned());
        assert_eq!(rest.cancel("mine", &id).await, Ok(()));
        assert_eq!(rest.limit("mine", &id, 5).await, Ok(()));
    }
    let gone = rest.cancel("mine", &JobId("8".to_owned())).await;
    assert!(gone.unwrap_err().is_of_a_job_that_is_gone());
    let requests = requests.lock().unwrap();
    let changes: Vec<_> = requests
        .iter()
        .filter(|asked| !asked.starts_with("GET"))
        .collect();
    let wanted = [
        "DELETE /slurm/v0.0.38/job/9 ada -",
        "POST /slurm/v0.0.38/job/9 ada -",
    ];
    assert_eq!(changes, wanted);
}

#[tokio::test]
async fn a_slurmrestd_that_cannot_be_asked_is_unclear_and_says_what_to_look_at() {
    let unknown = |_: &str| Some((StatusCode::UNAUTHORIZED, json!("Authentication failure")));
    let (rest, _) = stand_in(unknown).await;
    let other = |_: &str| None;
    let (other, _) = stand_in(other).await;
    let odd = |_: &str| fine(json!("hello"));
    let (odd, _) = stand_in(odd).await;
    let away = Rest::new(RestSettings {
        address: RestAddress::Socket("/nowhere/slurmrestd.socket".into()),
        ..rest.settings.clone()
    });
    let no_token = Rest::new(RestSettings {
        token_file: Some("/nowhere/token".into()),
        ..rest.settings.clone()
    });
    for (rest, says) in [
        (rest, "look at user and token_file"),
        (other, "has no version of its API between v0.0.38 and"),
        (
            odd,
            "answers 200 OK to /slurm/v0.0.45/jobs, and not as it should",
        ),
        (away, "slurmrestd at /nowhere/slurmrestd.socket: "),
        (no_token, "/nowhere/token: "),
    ] {
        let error = rest.jobs().await.unwrap_err();
        let SlurmError::Unclear(words) = error else {
            panic!("{error} is not unclear")
        };
        assert!(words.contains(says), "{words}");
    }
}

#[tokio::test]
async fn a_job_that_is_submitted_as_another_user_is_taken_back_with_what_to_set() {
    let (rest, requests) = stand_in(|asked| match asked {
        "GET /slurm/v0.0.45/job/7" => {
            fine(json!({"jobs": [{"job_id": 7, "name": "a", "user_name": "slurm"}]}))
        }
        "POST /slurm/v0.0.45/job/submit" => fine(json!({"job_id": 7})),
        "GET /slurm/v0.0.45/ping" | "DELETE /slurm/v0.0.45/job/7" => fine(json!({})),
        _ => None,
    })
    .await;
    let settings = super::super::SlurmSettings::default();
    let batch = Batch {
        settings: &settings,
        name: "a",
        comment: String::new(),
        minutes: 1,
        gres: None,
        memory_mib: None,
        image: Vec::new(),
        script: String::new(),
    };
    let Err(SlurmError::Refused(why)) = rest.submit(&batch).await else {
        panic!("it is not refused")
    };
    assert!(why.contains("set user = \"slurm\""), "{why}");
    let requests = requests.lock().unwrap();
    assert!(requests.contains(&"DELETE /slurm/v0.0.45/job/7 ada -".to_owned()));
}

#[tokio::test]
async fn an_answer_that_tells_of_no_jobs_is_not_that_there_are_none() {
    let (rest, _) = stand_in(|asked| match asked {
        "GET /slurm/v0.0.45/ping" | "GET /slurm/v0.0.45/jobs" | "GET /slurm/v0.0.45/nodes" => {
            fine(json!({"message": "down for maintenance"}))
        }
        _ => None,
    })
    .await;
    for said in [
        rest.jobs().await.map(drop),
        rest.nodes(None).await.map(drop),
        rest.waiting(None).await.map(drop),
    ] {
        assert!(matches!(said, Err(SlurmError::Unclear(_))), "{said:?}");
    }
}

#[tokio::test]
async fn a_job_whose_user_has_no_name_there_is_known_by_its_own() {
    let (rest, _) = stand_in(|asked| match asked {
        "GET /slurm/v0.0.45/ping" => fine(json!({})),
        "GET /slurm/v0.0.45/jobs" => fine(json!({"jobs": [
            {"job_id": 1, "name": "a", "user_name": ""},
            {"job_id": 2, "name": "a", "user_name": null},
            {"job_id": 3, "name": "a", "user_name": "bob"},
        ]})),
        _ => None,
    })
    .await;
    let ids = rest.jobs().await.unwrap().into_iter().map(|job| job.id);
    assert!(ids.eq(["1", "2"]));
}
