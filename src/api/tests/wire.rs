//! What is written, to the letter.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use axum::response::IntoResponse;
use dwell_core::gpu::{GpuId, GpuType};
use dwell_core::id::{GpuEventId, MachineId, MachineVersionId, SessionId};
use dwell_core::machine::{AppCommand, Recipe};
use dwell_core::metering::GpuEvent;
use dwell_core::owner::{OrgId, Owner, UserId};
use dwell_core::pricing::HourlyRate;
use dwell_core::session::{Ending, Place, Placement, Session, State};
use dwell_core::time::{Millis, Timestamp};
use uuid::Uuid;

use crate::api::error::ApiError;
use crate::api::session_wire::{GpuEventResponse, SessionListItem, SessionResponse};
use crate::driver::AskError;
use crate::session_urls::{Scheme, SessionUrls};
use crate::store::SessionRecord;

/// 2026-11-23T12:00:00Z.
const NOON: Timestamp = Timestamp(1_795_435_200_000);

fn running() -> SessionRecord {
    let gpu = GpuId("A10G/0000".into());
    let mut gpu_event = GpuEvent::new(
        GpuEventId(Uuid::from_u128(2)),
        HourlyRate::from_dollars(1.10).unwrap(),
    );
    let later = NOON.plus(Millis::from_minutes(60));
    gpu_event.prove(Some(&gpu), Millis::from_minutes(60), later, NOON);
    let session = Session {
        id: SessionId(Uuid::from_u128(1)),
        owner: Owner::Org(OrgId("acme".into())),
        user_id: UserId("ada".into()),
        machine_id: Some(MachineId(Uuid::from_u128(3))),
        machine_version_id: Some(MachineVersionId(Uuid::from_u128(4))),
        recipe: Recipe {
            command: AppCommand::Shell("app".into()),
            port: None,
            workdir: None,
            environment: BTreeMap::new(),
            gpu: GpuType("A10G".into()),
            timeout_minutes: 15,
            ready_path: "/".into(),
            access: None,
            container: None,
        },
        gpu_type: GpuType("A10G".into()),
        created_at: NOON,
        granted_ms: Millis::from_minutes(90),
        state: State::Running {
            placement: Placement {
                place: Place::Host {
                    gpu,
                    visible_device: "0".into(),
                },
                port: 20_001,
            },
            upstream: SocketAddr::from((Ipv4Addr::LOCALHOST, 9)).into(),
            started_at: NOON.plus(Millis(1_500)),
            timeout_end: NOON.plus(Millis(1_500)).plus(Millis::from_minutes(90)),
        },
        job: None,
        begun_by: None,
        gpu_event,
    };
    SessionRecord {
        session,
        queue_position: None,
    }
}

/// Field order included.
fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap()
}

fn urls() -> SessionUrls {
    SessionUrls::ports(Scheme::Http, "gpu.test".to_owned(), 8080)
}

#[test]
fn a_running_session_is_written_so() {
    assert_eq!(
        json(&SessionResponse::new(&running(), &urls())),
        r#"{
  "id": "00000000-0000-0000-0000-000000000001",
  "session_id": "00000000-0000-0000-0000-000000000001",
  "gpu_event_id": "00000000-0000-0000-0000-000000000002",
  "gpu": "A10G",
  "created_at": "2026-11-23T12:00:00.000Z",
  "url": "http://gpu.test:20001",
  "timeout": 90,
  "timeout_end": "2026-11-23T13:30:01.500Z",
  "machine_id": "00000000-0000-0000-0000-000000000003",
  "machine_version_id": "00000000-0000-0000-0000-000000000004",
  "status": "running",
  "user_id": "ada",
  "org_id": "acme",
  "started_at": "2026-11-23T12:00:01.500Z",
  "ended_at": null,
  "end_reason": null,
  "error": null,
  "queue_position": null,
  "job": null,
  "cost": 1.1
}"#
    );
}

#[test]
fn a_session_that_failed_in_a_personal_account_is_written_so() {
    let mut record = running();
    record.session.owner = Owner::User(UserId("ada".into()));
    record.session.machine_id = None;
    record.session.machine_version_id = None;
    record.session.gpu_event.close();
    record.session.state = State::Ended {
        started_at: None,
        ended_at: NOON.plus(Millis::from_minutes(60)),
        ending: Ending::failed("The app exited with 3".into()),
    };
    assert_eq!(
        json(&SessionResponse::new(&record, &urls())),
        r#"{
  "id": "00000000-0000-0000-0000-000000000001",
  "session_id": "00000000-0000-0000-0000-000000000001",
  "gpu_event_id": "00000000-0000-0000-0000-000000000002",
  "gpu": "A10G",
  "created_at": "2026-11-23T12:00:00.000Z",
  "url": null,
  "timeout": 90,
  "timeout_end": null,
  "machine_id": null,
  "machine_version_id": null,
  "status": "ended",
  "user_id": "ada",
  "org_id": null,
  "started_at": null,
  "ended_at": "2026-11-23T13:00:00.000Z",
  "end_reason": "failed",
  "error": "The app exited with 3",
  "queue_position": null,
  "job": null,
  "cost": 1.1
}"#
    );
}

#[test]
fn a_session_in_a_list_is_a_gpu_event_to_older_clients() {
    let item = json(&SessionListItem::new(&running(), &urls()));
    let session = json(&SessionResponse::new(&running(), &urls()));
    assert!(item.starts_with(session.trim_end_matches("\n}")));
    assert!(
        item.ends_with(
            r#"
  "start_time": "2026-11-23T12:00:00.000Z",
  "end_time": null,
  "gpu_provider": "modal",
  "session_timeout": 90,
  "tunnel_url": "http://gpu.test:20001",
  "updated_at": "2026-11-23T13:00:00.000Z"
}"#
        ),
        "{item}"
    );
}

#[test]
fn a_gpu_event_is_written_so() {
    assert_eq!(
        json(&GpuEventResponse::new(&running().session, &urls())),
        r#"{
  "id": "00000000-0000-0000-0000-000000000002",
  "user_id": "ada",
  "org_id": "acme",
  "machine_id": "00000000-0000-0000-0000-000000000003",
  "start_time": "2026-11-23T12:00:00.000Z",
  "end_time": null,
  "gpu": "A10G",
  "gpu_provider": "modal",
  "created_at": "2026-11-23T12:00:00.000Z",
  "updated_at": "2026-11-23T13:00:00.000Z",
  "session_timeout": 90,
  "session_id": "00000000-0000-0000-0000-000000000001",
  "tunnel_url": "http://gpu.test:20001",
  "cost": 1.1
}"#
    );
}

#[tokio::test]
async fn a_store_that_refuses_is_a_503_that_says_when_to_come_back() {
    let error = ApiError::from(AskError::Unavailable("The disk is full".into()));
    let answer = error.into_response();
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.headers()["retry-after"], "1");
}

#[test]
fn every_operation_has_a_name_of_its_own_and_says_what_it_answers() {
    let document = serde_json::to_value(crate::api::openapi()).unwrap();
    let mut names = std::collections::BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        assert!(!path.starts_with("/api/"), "{path} is listed twice");
        for (method, operation) in methods.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap();
            assert!(names.insert(name.to_owned()), "{name} is not unique");
            let answers = operation["responses"].as_object().unwrap();
            let expected: &[&str] = match (path.as_str(), method.as_str()) {
                ("/healthz", _) => &["200"],
                (_, "post" | "patch") => &["401", "413", "422", "503"],
                _ => &["200", "401", "503"],
            };
            for status in expected {
                assert!(answers.contains_key(*status), "{method} {path}: {status}");
            }
        }
    }
}
