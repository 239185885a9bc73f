//! What the API server is asked, and what becomes of a write that it does not take.

use super::*;
use crate::write::{Expected, What};
use http::{Request, Response};
use kube::client::Body;
use podlane_crds::RoutingNodeSpec;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use tower_test::mock;

type Asked = Arc<Mutex<Vec<(String, Value)>>>;

/// An API server that answers as it is told, and notes what it was asked.
fn applier(answers: impl Fn(&str) -> (u16, Value) + Send + 'static) -> (Applier, Asked) {
    let (service, mut handle) = mock::pair::<Request<Body>, Response<Body>>();
    let asked: Asked = Arc::default();
    let noted = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Some((request, send)) = handle.next_request().await {
            let what = format!("{} {}", request.method(), request.uri().path());
            let body = request.into_body().collect_bytes().await.expect("a body");
            let (code, answer) = answers(&what);
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            noted.lock().expect("unpoisoned").push((what, body));
            let response = Response::builder()
                .status(code)
                .body(Body::from(answer.to_string().into_bytes()));
            send.send_response(response.expect("a response"));
        }
    });
    (Applier::new(Client::new(service, "default"), "me"), asked)
}

fn failure(code: u16) -> (u16, Value) {
    let details = json!({"retryAfterSeconds": if code == 429 { 3 } else { 0 }});
    (
        code,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "details": details}),
    )
}

fn update(name: &str) -> Write {
    Write {
        name: name.to_owned(),
        what: What::UpdateNode {
            expected: Expected {
                uid: "u".to_owned(),
                generation: 7,
            },
            owner: "n".to_owned(),
            spec: Box::new(RoutingNodeSpec::default()),
        },
        events: Vec::new(),
    }
}

fn updated(name: &str) -> (u16, Value) {
    (
        200,
        json!({"metadata": {"name": name, "uid": "u", "generation": 8, "resourceVersion": "9"}, "spec": {}}),
    )
}

#[tokio::test(start_paused = true)]
async fn an_update_tests_the_generation_and_its_answer_is_put_into_the_picture() {
    let (mut applier, asked) = applier(|_| updated("a"));
    let shared = Shared::default();
    let outcome = applier.carry_out(&shared, vec![update("a")]).await;
    assert_eq!((outcome.done, outcome.failed, outcome.is_cut), (1, 0, false));
    assert_eq!(shared.world().routing_nodes["a"].identity.generation, 8);
    let asked = asked.lock().expect("unpoisoned");
    let (what, body) = &asked[0];
    assert_eq!(what, "PATCH /apis/podlane.io/v1alpha1/routingnodes/a");
    assert_eq!(
        body[1],
        json!({"op": "test", "path": "/metadata/generation", "value": 7})
    );
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_refused_waits_alone() {
    for code in [403, 404, 409, 422] {
        let (mut applier, asked) = applier(move |what| {
            if what.ends_with("/bad") {
                failure(code)
            } else {
                updated("good")
            }
        });
        let shared = Shared::default();
        let writes = || vec![update("bad"), update("good")];
        let outcome = applier.carry_out(&shared, writes()).await;
        assert_eq!(
            (outcome.done, outcome.failed, outcome.pause),
            (1, 1, None),
            "{code}"
        );
        let retry_at = outcome.retry_at.expect("it is tried again");
        // Not before its time, and then it is.
        applier.carry_out(&shared, vec![update("bad")]).await;
        assert_eq!(asked.lock().expect("unpoisoned").len(), 2);
        tokio::time::sleep_until(retry_at).await;
        applier.carry_out(&shared, vec![update("bad")]).await;
        assert_eq!(asked.lock().expect("unpoisoned").len(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_takes_nothing_is_left_alone() {
    for (code, at_least) in [(429, 3_000), (500, 100), (503, 100)] {
        let (mut applier, asked) = applier(move |_| failure(code));
        let writes = (0..100).map(|number| update(&format!("n{number}"))).collect();
        let outcome = applier.carry_out(&Shared::default(), writes).await;
        let pause = outcome.pause.expect("a pause") - Instant::now();
        assert!(pause.as_millis() >= at_least, "{code}: {pause:?}");
        // What was in flight already, and no more.
        assert!(asked.lock().expect("unpoisoned").len() <= AT_A_TIME);
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_api_server_does_not_keep_is_not_written_over_and_over() {
    let (mut applier, asked) = applier(|_| updated("a"));
    let shared = Shared::default();
    for _ in 0..100 {
        applier.carry_out(&shared, vec![update("a")]).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let asked = asked.lock().expect("unpoisoned").len();
    assert!(asked < 12, "{asked}");
}
