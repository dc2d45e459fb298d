//! What is captured, told to a control plane.

use std::{net::IpAddr, time::Duration};

use ambient_core::PodUid;
use tokio::time::timeout;
use tonic::Code;

use super::transport::{Endpoint, EndpointError, Line};
use crate::wire::ambient::control::v1::{CaptureReport, capture_service_client::CaptureServiceClient};

/// Tells a control plane which pods of a node are captured.
#[derive(Debug)]
pub struct Reports(Line);

/// Why a report was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The control plane is not reached.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// It refuses the report, or has failed.
    #[error("the control plane says {:?}: {message}", Code::from(*.code))]
    Refused {
        /// Its gRPC status, as a number.
        code: i32,
        /// Its words.
        message: String,
    },
    /// It does not answer.
    #[error("the control plane did not answer within {ANSWERING:?}")]
    Silent,
}

impl ReportError {
    /// Whether nobody was reached who could have refused it. A control plane that is there and cannot keep it is no absence: it answers
    /// by other codes than `Unavailable`, which is what a connection's end, and whoever stands between, are told by.
    pub fn is_absence(&self) -> bool {
        match self {
            Self::Endpoint(_) | Self::Silent => true,
            Self::Refused { code, .. } => Code::from(*code) == Code::Unavailable,
        }
    }
}

impl Reports {
    /// Prepares to tell; connects with the first report.
    ///
    /// # Errors
    /// When the endpoint cannot be understood.
    pub fn new(endpoint: Endpoint) -> Result<Self, EndpointError> {
        endpoint.check()?;
        Ok(Self(Line::new(endpoint)))
    }

    /// Tells that a pod's capture is proven, or is about to end. Once this returns every node will be told.
    ///
    /// Cancel safe, but whether the report was taken is not known then: it may be repeated.
    ///
    /// # Errors
    /// When the control plane is not reached, refuses, or does not answer.
    pub async fn report(&self, pod: &PodUid, addresses: &[IpAddr], captured: bool) -> Result<(), ReportError> {
        let report = CaptureReport {
            pod_uid: pod.to_string(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
            captured,
        };
        let mut dead = None;
        loop {
            let (channel, number) = self.0.channel(dead).await?;
            let request = self.0.endpoint().request(report.clone()).await?;
            let mut client = CaptureServiceClient::new(channel);
            match timeout(ANSWERING, client.report(request)).await {
                Ok(Ok(_)) => return Ok(()),
                // The connection of an earlier call, and dead since.
                Ok(Err(status)) if dead.is_none() && status.code() == Code::Unavailable => dead = Some(number),
                Ok(Err(status)) => {
                    self.0.endpoint().heard(&status);
                    return Err(ReportError::Refused {
                        code: status.code().into(),
                        message: status.message().into(),
                    });
                }
                Err(_) => {
                    self.0.hang_up().await;
                    return Err(ReportError::Silent);
                }
            }
        }
    }
}

/// How long the control plane may take.
const ANSWERING: Duration = Duration::from_secs(10);
