//! What is told when the API server fails.

use super::*;
use http::{Request, Response};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch as latest};
use tower_test::mock::{self, Handle};

type Server = Handle<Request<Body>, Response<Body>>;

/// Answers the next request, and returns what was asked.
async fn answer(server: &mut Server, code: u16, body: &str) -> String {
    let (request, send) = server.next_request().await.expect("a request");
    let response = Response::builder()
        .status(code)
        .body(Body::from(body.as_bytes().to_vec()));
    send.send_response(response.expect("a response"));
    request.uri().to_string()
}

fn failure(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": reason, "reason": reason, "code": code})
}

fn slice(name: &str, peers: &Value) -> Value {
    json!({"apiVersion": "podlane.io/v1alpha1", "kind": "PeerSlice", "metadata": {"name": name, "resourceVersion": "8"}, "spec": {"peers": peers}})
}

fn list(items: &[Value], next: &str) -> String {
    json!({"kind": "PeerSliceList", "apiVersion": "podlane.io/v1alpha1",
        "metadata": {"resourceVersion": "7", "continue": next}, "items": items})
    .to_string()
}

/// A runtime, a server and a client; what was asked beyond the scenario shows as a time-out.
fn scenario<F: Future<Output = ()>>(play: impl FnOnce(Client, Server) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (service, server) = mock::pair::<Request<Body>, Response<Body>>();
        let play = play(Client::new(service, "default"), server);
        tokio::time::timeout(Duration::from_secs(10), play)
            .await
            .expect("no call is missing");
    });
}

#[test]
fn slices_are_told_through_429_a_bad_object_pages_and_compaction() {
    scenario(|client, mut server| async move {
        let (told, mut heard) = mpsc::channel(16);
        let watching = tokio::spawn(slices(latest::channel(client).1, told));

        answer(&mut server, 429, &failure(429, "TooManyRequests").to_string()).await;
        let good = slice("peers-0", &json!([{"name": "a", "podCIDRs": ["172.20.1.0/24"]}]));
        let asked = answer(&mut server, 200, &list(std::slice::from_ref(&good), "more")).await;
        assert!(asked.contains(&format!("limit={PAGE}")), "{asked}");
        let asked = answer(&mut server, 200, &list(&[slice("peers-1", &json!(3))], "")).await;
        assert!(asked.contains("continue=more"), "{asked}");

        let Some(Told::Slice(name, Ok(read))) = heard.recv().await else {
            panic!("a slice")
        };
        assert_eq!((name.as_str(), read.peers.len()), ("peers-0", 1));
        let Some(Told::Slice(name, Err(error))) = heard.recv().await else {
            panic!("a slice that cannot be read")
        };
        assert_eq!((name.as_str(), error.name.as_str()), ("peers-1", "peers-1"));
        let Some(Told::Slices(all)) = heard.recv().await else {
            panic!("the end of the list")
        };
        assert_eq!(all.len(), 2);

        // The watch is told that its version is compacted: a new list, and nothing before that.
        let expired = json!({"type": "ERROR", "object": failure(410, "Expired")}).to_string() + "\n";
        assert!(answer(&mut server, 200, &expired).await.contains("watch=true"));
        answer(&mut server, 200, &list(&[good], "")).await;
        assert!(matches!(heard.recv().await, Some(Told::Slice(name, Ok(_))) if name == "peers-0"));
        assert!(matches!(heard.recv().await, Some(Told::Slices(all)) if all.len() == 1));

        // A change, and a deletion.
        let event = |kind: &str, name: &str| {
            json!({"type": kind, "object": slice(name, &json!([]))}).to_string() + "\n"
        };
        answer(
            &mut server,
            200,
            &(event("MODIFIED", "peers-0") + &event("DELETED", "peers-0")),
        )
        .await;
        assert!(matches!(heard.recv().await, Some(Told::Slice(_, Ok(read))) if read.peers.is_empty()));
        assert!(matches!(heard.recv().await, Some(Told::SliceGone(name)) if name == "peers-0"));
        watching.abort();
    });
}

#[test]
fn the_own_node_is_asked_for_by_name_and_told_when_it_is_not_there() {
    scenario(|client, mut server| async move {
        let (told, mut heard) = mpsc::channel(16);
        let watching = tokio::spawn(async move { own(latest::channel(client).1, "k8s-ctr", told).await });
        let asked = answer(&mut server, 200, &list(&[], "")).await;
        assert!(asked.contains("fieldSelector=metadata.name%3Dk8s-ctr"), "{asked}");
        assert!(matches!(heard.recv().await, Some(Told::OwnGone)));
        let node = json!({"apiVersion": "podlane.io/v1alpha1", "kind": "RoutingNode",
            "metadata": {"name": "k8s-ctr", "generation": 3, "resourceVersion": "8"},
            "spec": {"addresses": ["192.168.10.100"], "podCIDRs": ["172.20.0.0/24"], "receiveOn": ["native"]}});
        answer(
            &mut server,
            200,
            &(json!({"type": "ADDED", "object": node}).to_string() + "\n"),
        )
        .await;
        let Some(Told::Own(own)) = heard.recv().await else {
            panic!("the node")
        };
        let own = own.expect("readable");
        assert_eq!(own.generation, Some(3));
        assert_eq!(own.assignment.expect("valid").name, "k8s-ctr");
        watching.abort();
    });
}

#[test]
fn a_new_client_is_asked_although_the_old_one_still_waits() {
    scenario(|client, mut server| async move {
        let (told, mut heard) = mpsc::channel(16);
        let (clients, newest) = latest::channel(client);
        let watching = tokio::spawn(async move { own(newest, "k8s-ctr", told).await });
        answer(&mut server, 200, &list(&[], "")).await;
        assert!(matches!(heard.recv().await, Some(Told::OwnGone)));
        // A watch that will never hear anything.
        let (_, _unanswered) = server.next_request().await.expect("a watch");
        let (service, mut other) = mock::pair::<Request<Body>, Response<Body>>();
        clients.send_replace(Client::new(service, "default"));
        let asked = answer(&mut other, 200, &list(&[], "")).await;
        assert!(asked.contains("fieldSelector=metadata.name%3Dk8s-ctr"), "{asked}");
        assert!(matches!(heard.recv().await, Some(Told::OwnGone)));
        watching.abort();
    });
}
