//! Whose machine this is: by what its firmware says, else by which metadata service answers, asked once.

use std::path::Path;
use std::time::Duration;

use cic_common::notice::Cloud;
use futures_util::future::join3;
use hyper::{Method, StatusCode};

use super::metadata::{Metadata, Question};

/// The network may not be up yet when the agent starts.
const TRIES: u32 = 4;
const BETWEEN_TRIES: Duration = Duration::from_secs(5);

/// An answer within a link-local hop comes in milliseconds; where nobody is, none comes.
const PROBE_WITHIN: Duration = Duration::from_secs(1);

/// Azure's mark in the firmware, the same on all its VMs: "Detect if a VM runs on Azure".
const AZURE_ASSET_TAG: &str = "7783-7084-3265-9085-8269-3286-77";

/// What the firmware says, and where.
const DMI: &str = "sys/class/dmi/id";
const DMI_FILES: [&str; 6] =
    ["sys_vendor", "product_name", "bios_vendor", "bios_version", "product_uuid", "chassis_asset_tag"];

/// What was found, and by what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) cloud: Cloud,
    pub(super) by: String,
}

fn found(cloud: Cloud, by: impl Into<String>) -> Finding {
    Finding { cloud, by: by.into() }
}

/// Looks at the environment, then at the firmware below `root`, then asks the services at `address`.
pub(super) async fn detect(root: &Path, address: &str, variable: impl Fn(&str) -> bool) -> Finding {
    if let Some(finding) = by_environment(variable) {
        return finding;
    }
    if let Some(finding) =
        by_firmware(|name| std::fs::read_to_string(root.join(DMI).join(name)).unwrap_or_default())
    {
        return finding;
    }
    // A machine whose firmware says what it is, and is none of theirs, asks nobody: whoever answers there could take it.
    if DMI_FILES.iter().any(|name| root.join(DMI).join(name).exists()) {
        return found(Cloud::None, "firmware of no cloud that is known");
    }
    for number in 1..=TRIES {
        if let Some(finding) = by_answer(address).await {
            return finding;
        }
        if number < TRIES {
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
    }
    found(Cloud::None, "neither firmware nor a metadata service names one")
}

/// Containers show the firmware of their host, which gets notices of its own that are not theirs to read.
fn by_environment(variable: impl Fn(&str) -> bool) -> Option<Finding> {
    for (name, cloud) in [("RUNPOD_POD_ID", Cloud::Runpod), ("VAST_CONTAINERLABEL", Cloud::None)] {
        if variable(name) {
            return Some(found(cloud, format!("variable {name}")));
        }
    }
    None
}

/// `read` returns a file of `/sys/class/dmi/id`.
fn by_firmware(read: impl Fn(&str) -> String) -> Option<Finding> {
    let [vendor, product, bios, version, uuid, tag] = DMI_FILES.map(&read);
    // Instances on Xen name Amazon in the version only, or in the serial number, which root alone may read.
    let is_xen_of_aws = version.to_lowercase().contains("amazon") || uuid.to_lowercase().starts_with("ec2");
    let cloud = match () {
        () if vendor.trim() == "Amazon EC2" || bios.trim() == "Amazon EC2" || is_xen_of_aws => Cloud::Aws,
        () if product.trim() == "Google Compute Engine" => Cloud::Gcp,
        () if tag.trim() == AZURE_ASSET_TAG => Cloud::Azure,
        // It tells of interruptions by its Events service only, which is not to be had in the VM.
        () if tag.trim() == "OracleCloud.com" => Cloud::None,
        () => return None,
    };
    Some(found(cloud, format!("firmware of {}", [vendor.trim(), product.trim()].join(" "))))
}

async fn by_answer(address: &str) -> Option<Finding> {
    let asked = |question: Question, is_it: fn(&super::metadata::Answer) -> bool| async move {
        let answer = Metadata::new(address).ask(&question, PROBE_WITHIN).await;
        answer.is_ok_and(|answer| is_it(&answer))
    };
    let token = Question { method: Method::PUT, ..Question::get("/latest/api/token") }
        .with("x-aws-ec2-metadata-token-ttl-seconds", "60");
    let google = Question::get("/computeMetadata/v1/instance/id").with("metadata-flavor", "Google");
    let azure = Question::get("/metadata/instance/compute/vmId?api-version=2021-02-01&format=text")
        .with("metadata", "true");
    let (aws, gcp, azure) = join3(
        asked(token, |answer| answer.status == StatusCode::OK && !answer.text().is_empty()),
        asked(google, |answer| {
            answer.headers.get("metadata-flavor").is_some_and(|flavor| flavor == "Google")
        }),
        asked(azure, |answer| answer.status == StatusCode::OK && !answer.text().is_empty()),
    )
    .await;
    // Google answers with its own header; a PUT of a token is AWS's alone.
    let cloud = match (gcp, azure, aws) {
        (true, _, _) => Cloud::Gcp,
        (_, true, _) => Cloud::Azure,
        (_, _, true) => Cloud::Aws,
        (false, false, false) => return None,
    };
    Some(found(cloud, "its metadata service answers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_firmware_of_every_cloud_is_known() {
        type Files = &'static [(&'static str, &'static str)];
        let rows: [(Files, Option<Cloud>); 10] = [
            (&[("sys_vendor", "Amazon EC2\n"), ("product_name", "p5.48xlarge\n")], Some(Cloud::Aws)),
            (&[("bios_vendor", "Amazon EC2\n")], Some(Cloud::Aws)),
            (&[("sys_vendor", "Xen\n"), ("bios_version", "4.11.amazon\n")], Some(Cloud::Aws)),
            (
                &[("sys_vendor", "Xen\n"), ("product_uuid", "EC2E1916-9099-7CAF-FD21-012345ABCDEF\n")],
                Some(Cloud::Aws),
            ),
            (&[("sys_vendor", "Google\n"), ("product_name", "Google Compute Engine\n")], Some(Cloud::Gcp)),
            (
                &[
                    ("sys_vendor", "Microsoft Corporation\n"),
                    ("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77\n"),
                ],
                Some(Cloud::Azure),
            ),
            // A Hyper-V host of one's own.
            (&[("sys_vendor", "Microsoft Corporation\n"), ("product_name", "Virtual Machine\n")], None),
            (&[("chassis_asset_tag", "OracleCloud.com\n")], Some(Cloud::None)),
            (&[("sys_vendor", "QEMU\n")], None),
            (&[], None),
        ];
        for (files, expected) in rows {
            let read = |name: &str| {
                let file = files.iter().find(|(file, _)| *file == name);
                file.map_or_else(String::new, |(_, text)| (*text).to_owned())
            };
            assert_eq!(by_firmware(read).map(|finding| finding.cloud), expected, "{files:?}");
        }
    }

    #[test]
    fn a_container_is_known_by_its_environment_and_not_by_its_hosts_firmware() {
        for (name, expected) in [
            ("RUNPOD_POD_ID", Some(Cloud::Runpod)),
            ("VAST_CONTAINERLABEL", Some(Cloud::None)),
            ("HOSTNAME", None),
        ] {
            assert_eq!(by_environment(|asked| asked == name).map(|finding| finding.cloud), expected);
        }
    }
}
