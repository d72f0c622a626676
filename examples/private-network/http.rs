//! The HTTP of the example: a backend, a firewall before it, and a client. None of it knows of private networks, but for the
//! firewall's connection to its backend.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use pn_backend_userspace::{Port, TcpListener};
use tokio::io::{AsyncRead, AsyncWrite};

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// Serves the backend's page on a port inside the network, and counts requests.
pub(crate) async fn serve_backend(listener: TcpListener, page: String, requests: Arc<AtomicU64>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (page, requests) = (page.clone(), Arc::clone(&requests));
        serve(stream, move |_| {
            requests.fetch_add(1, Ordering::Relaxed);
            let response = Response::new(Full::from(page.clone()));
            async { Ok::<_, Error>(response) }
        });
    }
}

/// Serves the public port: refuses what is hostile, and sends the rest to the backend, by its name.
pub(crate) async fn serve_firewall(public: tokio::net::TcpListener, port: Port, backend: String) {
    while let Ok((stream, _)) = public.accept().await {
        let (port, backend) = (port.clone(), backend.clone());
        serve(stream, move |request| {
            let (port, backend) = (port.clone(), backend.clone());
            async move {
                if is_hostile(request.uri()) {
                    return Ok(answer(StatusCode::FORBIDDEN, "refused by the firewall\n"));
                }
                // Every request resolves the name anew, so containers that come and go are noticed at once.
                let (status, body) = get(port.connect(&*backend).await?, &backend, request.uri().clone()).await?;
                Ok(answer(status, body))
            }
        });
    }
}

/// Fetches a page from the public port.
pub(crate) async fn fetch(address: SocketAddr, path: &'static str) -> Result<(u16, String), Error> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    let (status, body) = get(stream, "shop.example", path.parse()?).await?;
    Ok((status.as_u16(), String::from_utf8(body.to_vec())?))
}

/// Fetches a page over a connection of any kind.
async fn get<S>(stream: S, host: &str, uri: Uri) -> Result<(StatusCode, Bytes), Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get(uri).header(hyper::header::HOST, host).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    Ok((response.status(), response.into_body().collect().await?.to_bytes()))
}

fn serve<S, F, R>(stream: S, handler: F)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Response<Full<Bytes>>, Error>> + Send,
{
    tokio::spawn(async move {
        let service = service_fn(|request| {
            let response = handler(request);
            async {
                let failed = |error: Error| answer(StatusCode::BAD_GATEWAY, format!("{error}\n"));
                Ok::<_, Infallible>(response.await.unwrap_or_else(failed))
            }
        });
        // A client that goes away ends its own connection only.
        drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
    });
}

fn answer(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}

/// Knows an SQL injection, a script and a way out of a directory when it sees a plain one; a real firewall has hundreds of
/// rules.
fn is_hostile(uri: &Uri) -> bool {
    let text = uri.path_and_query().map_or("", |text| text.as_str()).to_ascii_lowercase();
    let decoded =
        text.replace("%20", " ").replace('+', " ").replace("%27", "'").replace("%3c", "<").replace("%2e", ".");
    ["' or ", "union select", "<script", "../"].iter().any(|hostile| decoded.contains(hostile))
}
