//! The requests of the admin interface, in one table: what is dispatched, what is refused, and what `docs/operations.md`
//! tells.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Request as HttpRequest, StatusCode};
use model::weight::MAX_WEIGHT;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use super::ask;
use super::http::{Answer, body};
use super::types::{
    API_VERSION, Change, Changed, ChannelsReport, Failure, QualityReport, QueueReport, Snapshot, StandbyReport,
};
use crate::controller::Request;

/// No request has a longer body.
const MAX_BODY: usize = 64 * 1024;

/// A kind of request.
pub struct Route {
    pub method: Method,
    /// Below `/v1/`. What is in braces is the rest of the path, whatever it is.
    pub path: &'static str,
    /// What is sent and answered, for the documentation.
    pub meaning: &'static str,
    handle: fn(Call) -> Pin<Box<dyn Future<Output = Answer> + Send>>,
}

/// All requests.
pub static ROUTES: [Route; 7] = [
    Route {
        method: Method::GET,
        path: "snapshot",
        meaning: "what `status`, `stats`, `services` and `backends` show",
        handle: |call| Box::pin(call.document::<_, Snapshot>(Request::Gateway)),
    },
    Route {
        method: Method::GET,
        path: "quality",
        meaning: "why the weights are what they are, as `quality --json`",
        handle: |call| Box::pin(call.document::<_, QualityReport>(Request::Quality)),
    },
    Route {
        method: Method::GET,
        path: "channels",
        meaning: "the ways to each server, as `channels --json`",
        handle: |call| Box::pin(call.document::<_, ChannelsReport>(Request::Channels)),
    },
    Route {
        method: Method::GET,
        path: "standby",
        meaning: "the pool of standby servers, as `standby --json`",
        handle: |call| Box::pin(call.document::<_, StandbyReport>(Request::Standby)),
    },
    Route {
        method: Method::GET,
        path: "queue",
        meaning: "what waits, as `queue --json`",
        handle: |call| Box::pin(call.document::<_, QueueReport>(Request::Queue)),
    },
    Route {
        method: Method::POST,
        path: "servers/{server}",
        meaning: "changes a server, as `service/server` or by its name alone: `\"drain\"`, `\"enable\"` or `{\"weight\":5}`; \
                  answers with its full name",
        handle: |call| Box::pin(call.change()),
    },
    Route {
        method: Method::POST,
        path: "reload",
        meaning: "reads the configuration anew",
        handle: |call| Box::pin(call.reload()),
    },
];

impl Route {
    /// What stands in the place of the braces, if this is the path.
    fn rest<'a>(&self, path: &'a str) -> Option<&'a str> {
        match self.path.split_once('{') {
            Some((before, _)) => path.strip_prefix(before),
            None => (path == self.path).then_some(""),
        }
    }
}

/// What answers a request.
enum Found<'a> {
    Route(&'static Route, &'a str),
    /// The path is another's.
    OtherVersion,
    Missing(&'a str),
    /// The path has these methods.
    WrongMethod(Vec<&'static str>),
}

fn find<'a>(method: &Method, path: &'a str) -> Found<'a> {
    let Some(path) = path.strip_prefix(&format!("/v{API_VERSION}/")) else {
        return Found::OtherVersion;
    };
    let mut methods = Vec::new();
    for route in &ROUTES {
        match route.rest(path) {
            Some(rest) if route.method == *method => return Found::Route(route, rest),
            Some(_) => methods.push(route.method.as_str()),
            None => {}
        }
    }
    if methods.is_empty() { Found::Missing(path) } else { Found::WrongMethod(methods) }
}

/// Answers a request.
pub(super) async fn answer(request: HttpRequest<Incoming>, requests: mpsc::Sender<Request>) -> Answer {
    let path = request.uri().path().to_owned();
    match find(request.method(), &path) {
        Found::Route(route, rest) => {
            (route.handle)(Call { rest: rest.to_owned(), body: request.into_body(), requests }).await
        }
        Found::OtherVersion => failure(
            StatusCode::NOT_FOUND,
            format!("this controller speaks version {API_VERSION} of the admin interface (/v{API_VERSION}/...)"),
        ),
        Found::Missing(path) => failure(StatusCode::NOT_FOUND, format!("there is no /v{API_VERSION}/{path}")),
        Found::WrongMethod(methods) => {
            let methods = methods.join(", ");
            let mut answer = failure(StatusCode::METHOD_NOT_ALLOWED, format!("{path} is asked by {methods}"));
            if let Ok(methods) = HeaderValue::from_str(&methods) {
                answer.headers_mut().insert(ALLOW, methods);
            }
            answer
        }
    }
}

/// A request whose route is found.
struct Call {
    /// What stands in the place of the route's braces.
    rest: String,
    body: Incoming,
    requests: mpsc::Sender<Request>,
}

impl Call {
    /// Tells what the controller tells.
    async fn document<T, D: From<T> + Serialize>(self, request: fn(oneshot::Sender<T>) -> Request) -> Answer {
        match ask(&self.requests, request).await {
            Some(status) => json(StatusCode::OK, &D::from(status)),
            None => stopping(),
        }
    }

    async fn change(self) -> Answer {
        let change: Change = match read(self.body).await {
            Ok(Change::Weight(weight)) if weight > MAX_WEIGHT => {
                let error = format!("no weight: {weight}\nhelp: choose a number from 0 to {MAX_WEIGHT}");
                return failure(StatusCode::BAD_REQUEST, error);
            }
            Ok(change) => change,
            Err(error) => return failure(StatusCode::BAD_REQUEST, error),
        };
        let Ok(server) = percent_decode_str(&self.rest).decode_utf8().map(Cow::into_owned) else {
            return failure(StatusCode::BAD_REQUEST, format!("{} is no name in UTF-8", self.rest));
        };
        match ask(&self.requests, |reply| Request::Change(server, change.into(), reply)).await {
            Some(Ok(server)) => json(StatusCode::OK, &Changed { server }),
            Some(Err(error)) => failure(StatusCode::NOT_FOUND, error),
            None => stopping(),
        }
    }

    async fn reload(self) -> Answer {
        match ask(&self.requests, Request::Reload).await {
            Some(Ok(())) => json(StatusCode::OK, &serde_json::json!({})),
            Some(Err(error)) => failure(StatusCode::CONFLICT, error),
            None => stopping(),
        }
    }
}

async fn read<T: DeserializeOwned>(body: Incoming) -> Result<T, String> {
    let bytes = Limited::new(body, MAX_BODY).collect().await.map_err(|error| error.to_string())?.to_bytes();
    serde_json::from_slice(&bytes).map_err(|error| format!("no change: {error}"))
}

fn stopping() -> Answer {
    failure(StatusCode::SERVICE_UNAVAILABLE, "the controller is stopping".to_owned())
}

fn failure(status: StatusCode, error: String) -> Answer {
    json(status, &Failure { error })
}

fn json(status: StatusCode, document: &impl Serialize) -> Answer {
    match serde_json::to_vec(document) {
        Ok(text) => body(status, "application/json", text),
        Err(error) => body(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(method: Method, path: &str) -> String {
        match find(&method, path) {
            Found::Route(route, rest) => format!("{} {rest}", route.path),
            Found::OtherVersion => "other version".to_owned(),
            Found::Missing(path) => format!("no {path}"),
            Found::WrongMethod(methods) => format!("only {}", methods.join(", ")),
        }
    }

    #[test]
    fn requests_find_their_route_or_hear_why_not() {
        for (method, path, wanted) in [
            (Method::GET, "/v1/snapshot", "snapshot "),
            (Method::GET, "/v1/queue", "queue "),
            (Method::POST, "/v1/servers/web/web1", "servers/{server} web/web1"),
            (Method::POST, "/v1/servers/web1", "servers/{server} web1"),
            (Method::POST, "/v1/reload", "reload "),
            (Method::POST, "/v1/snapshot", "only GET"),
            (Method::GET, "/v1/servers/web1", "only POST"),
            (Method::DELETE, "/v1/reload", "only POST"),
            (Method::GET, "/v1/snapshot/more", "no snapshot/more"),
            (Method::GET, "/v1/", "no "),
            (Method::GET, "/v2/snapshot", "other version"),
            (Method::GET, "/", "other version"),
        ] {
            assert_eq!(found(method.clone(), path), wanted, "{method} {path}");
        }
    }

    #[test]
    fn all_routes_are_in_the_documentation() {
        let documentation = include_str!("../../../docs/operations.md");
        for Route { method, path, meaning, .. } in &ROUTES {
            let line = format!("| `{method} /v{API_VERSION}/{path}` | {meaning} |\n");
            assert!(documentation.contains(&line), "docs/operations.md should have the line\n{line}");
        }
    }
}
