//! The body of an answer from outside, whose cost is settled when it ends, however it ends.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame};

use super::super::super::relay::Relay;
use super::surge::Bill;
use super::usage::Reading;
use crate::serve::peer::BodyError;

/// Passes an answer on and counts its tokens.
pub(super) struct Metered {
    relay: Relay,
    reading: Reading,
    /// `None` once it is settled.
    bill: Option<Bill>,
}

impl Metered {
    pub(super) fn new(relay: Relay, reading: Reading, bill: Bill) -> Self {
        Self { relay, reading, bill: Some(bill) }
    }

    fn settle(&mut self) {
        if let Some(bill) = self.bill.take() {
            bill.settle(&self.reading);
        }
    }
}

impl Body for Metered {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.bill.is_none() {
            return Poll::Ready(None);
        }
        loop {
            let frame = match ready!(Pin::new(&mut this.relay).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    this.settle();
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    let rest = this.reading.end();
                    this.settle();
                    return Poll::Ready((!rest.is_empty()).then(|| Ok(Frame::data(rest))));
                }
            };
            match frame.into_data() {
                Ok(data) => {
                    let passing = this.reading.take(data);
                    if !passing.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(passing))));
                    }
                }
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        self.settle();
    }
}
