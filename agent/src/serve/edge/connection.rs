//! One connection to a replica, driven by whoever waits for its answer.
//!
//! It has no task of its own: a request and each piece of its answer would cross to that task and back, mostly to
//! another thread. It lives in the attempt and then in the answer's body, and ends with them. One that lies idle is not
//! driven; that its replica has closed it meanwhile is seen when it is taken or swept.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::pool::Lease;

type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// An open connection.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// `None` once the connection is over.
    driver: Option<Driver>,
}

impl Connection {
    pub(super) async fn begin<S>(stream: S) -> io::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, driver) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        Ok(Self { sender, driver: Some(Box::pin(driver)) })
    }

    /// Sends `request`. Cancel safe: dropped with the connection, it closes that.
    ///
    /// # Errors
    /// With the request in it where the replica cannot have seen it.
    pub(super) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Full<Bytes>>>> {
        let Self { sender, driver } = self;
        let mut sending = pin!(sender.try_send_request(request));
        poll_fn(|context| {
            drive(driver, context);
            // An answer comes by driving and in no other way, so that nobody has to be woken for it.
            sending.as_mut().poll(&mut quietly())
        })
        .await
    }

    /// Whether another request can be sent on it: it is open as far as is known here, and has no answer under way.
    pub(super) fn is_usable(&mut self) -> bool {
        drive(&mut self.driver, &mut quietly());
        self.driver.is_some() && self.sender.is_ready()
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("is_open", &self.driver.is_some()).finish_non_exhaustive()
    }
}

/// The body of a replica's answer. Read to its end, it gives its connection back; dropped before, it closes it, which is
/// how a replica learns that nobody waits any more.
#[derive(Debug)]
pub(super) struct Inflow {
    body: Incoming,
    /// `None` once it was given back.
    lease: Option<Lease>,
}

impl Inflow {
    pub(super) fn new(body: Incoming, lease: Lease) -> Self {
        Self { body, lease: Some(lease) }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    /// Gives the connection back early: nothing more is to come.
    pub(super) fn end(mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }

    pub(super) async fn frame(&mut self) -> Option<hyper::Result<Frame<Bytes>>> {
        poll_fn(|context| self.poll_next(context)).await
    }

    pub(super) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let mut polled = self.poll_body();
        if polled.is_pending()
            && let Some(lease) = &mut self.lease
        {
            drive(&mut lease.connection.driver, context);
            polled = self.poll_body();
        }
        if let Poll::Ready(None) = &polled
            && let Some(lease) = self.lease.take()
        {
            lease.give_back();
        }
        polled
    }

    /// Frames come by driving and in no other way.
    fn poll_body(&mut self) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        Pin::new(&mut self.body).poll_frame(&mut quietly())
    }
}

impl Body for Inflow {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        self.get_mut().poll_next(context)
    }
}

/// Has the connection do what it can now. Its error, if any, is told to those who wait for its answer.
fn drive(driver: &mut Option<Driver>, context: &mut Context<'_>) {
    if let Some(driving) = driver
        && driving.as_mut().poll(context).is_ready()
    {
        *driver = None;
    }
}

fn quietly() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn one_that_its_replica_closed_while_it_lay_idle_is_no_more_usable() {
        let (own, mut replica) = tokio::io::duplex(1024);
        let mut connection = Connection::begin(own).await.unwrap();
        for _ in 0..2 {
            let answers = async {
                let mut asked = [0; 1024];
                assert_ne!(replica.read(&mut asked).await.unwrap(), 0);
                replica.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            };
            let (answer, ()) = tokio::join!(connection.send(Request::default()), answers);
            assert_eq!(answer.unwrap().status(), 200);
            assert!(connection.is_usable());
        }
        drop(replica);
        assert!(!connection.is_usable());
    }

    #[tokio::test]
    async fn a_request_that_was_not_begun_comes_back() {
        let (own, replica) = tokio::io::duplex(1024);
        let mut connection = Connection::begin(own).await.unwrap();
        drop(replica);
        assert!(!connection.is_usable());
        let mut error = connection.send(Request::default()).await.unwrap_err();
        assert!(error.take_message().is_some());
    }
}
