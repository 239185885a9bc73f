//! What is written when the API server fails, and when others write too.

use super::*;
use http::{Request, Response};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower_test::mock::{self, Handle};

type Server = Handle<Request<Body>, Response<Body>>;

async fn answer(server: &mut Server, code: u16) -> (String, Value) {
    let (request, send) = server.next_request().await.expect("a request");
    let (head, body) = request.into_parts();
    let written = serde_json::from_slice(&body.collect_bytes().await.expect("a body")).expect("JSON");
    let answer = match code {
        200 => {
            json!({"apiVersion": "podlane.io/v1alpha1", "kind": "RoutingNode", "metadata": {"name": "k8s-ctr"}, "spec": {}})
        }
        code => {
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no", "reason": "no", "code": code})
        }
    };
    let response = Response::builder()
        .status(code)
        .body(Body::from(answer.to_string().into_bytes()));
    send.send_response(response.expect("a response"));
    (format!("{} {}", head.method, head.uri), written)
}

fn lanes(text: &str) -> Option<RoutingNodeStatus> {
    Some(RoutingNodeStatus {
        lanes: Some(text.to_owned()),
        ..RoutingNodeStatus::default()
    })
}

fn condition(kind: &str) -> Condition {
    Condition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: "Said".to_owned(),
        message: String::new(),
        observed_generation: None,
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    }
}

#[test]
fn status_is_written_until_it_is_held_and_again_when_somebody_changes_it() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let play = async {
        let (service, mut server) = mock::pair::<Request<Body>, Response<Body>>();
        let (wanted_status, wanted) = watch::channel(None);
        let (held_status, held) = watch::channel(None);
        let keeping = tokio::spawn(keep(
            watch::channel(Client::new(service, "default")).1,
            "k8s-ctr",
            wanted,
            held,
        ));
        wanted_status.send_replace(lanes("1 native"));
        // There is no RoutingNode yet: nothing is written before this.
        tokio::time::sleep(Duration::from_millis(50)).await;
        held_status.send_replace(Some(RoutingNodeStatus::default()));
        answer(&mut server, 500).await;
        answer(&mut server, 429).await;
        let (asked, written) = answer(&mut server, 200).await;
        assert!(
            asked.starts_with("PATCH /apis/podlane.io/v1alpha1/routingnodes/k8s-ctr/status"),
            "{asked}"
        );
        assert!(asked.contains("fieldManager=podlane-agent"), "{asked}");
        assert_eq!(written["status"]["lanes"], "1 native");
        // Held as it is wanted: the next write is one that somebody's change calls for.
        held_status.send_replace(lanes("1 native"));
        tokio::time::sleep(REST * 2).await;
        held_status.send_replace(lanes("all is lost"));
        assert_eq!(answer(&mut server, 200).await.1["status"]["lanes"], "1 native");
        // Somebody else has written in a condition of the agent's, which it does not say any more.
        let [accepted, cleaned] = ["Accepted", "Cleaned"].map(condition);
        held_status.send_replace(Some(RoutingNodeStatus {
            conditions: vec![accepted, cleaned],
            ..RoutingNodeStatus::default()
        }));
        answer(&mut server, 422).await;
        let (asked, withdrawn) = answer(&mut server, 200).await;
        assert!(!asked.contains("force"), "{asked}");
        let left = withdrawn["status"]["conditions"].as_array().expect("conditions");
        assert_eq!(left.len(), 1, "{withdrawn}");
        assert_eq!(left[0]["type"], "Accepted");
        assert_eq!(answer(&mut server, 200).await.1["status"]["lanes"], "1 native");
        keeping.abort();
    };
    runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(10), play).await })
        .expect("no call is missing");
}
