//! What a VM may cost.

use serde::{Deserialize, Serialize};

/// The highest price that is believed to be meant: some hundred times the dearest single machine on any list.
const USD_MAX: f64 = 10_000.0;

/// Thousandths in one US dollar.
const MILLS: f64 = 1000.0;

/// A price in US dollars an hour, to a tenth of a cent. In JSON a number of dollars, such as `2.5`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct UsdPerHour {
    mills: u32,
}

/// Why a number is no price.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{0} is no price in USD an hour: expected 0.001 to {USD_MAX}")]
pub struct PriceError(f64);

impl TryFrom<f64> for UsdPerHour {
    type Error = PriceError;

    fn try_from(usd: f64) -> Result<Self, PriceError> {
        let mills = (usd * MILLS).round();
        if !(1.0..=USD_MAX * MILLS).contains(&mills) {
            return Err(PriceError(usd));
        }
        Ok(Self { mills: mills as u32 })
    }
}

impl From<UsdPerHour> for f64 {
    fn from(price: UsdPerHour) -> Self {
        Self::from(price.mills) / MILLS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_is_read_and_written_as_dollars_and_nonsense_is_refused() {
        let price: UsdPerHour = serde_json::from_str("2.5").unwrap();
        assert_eq!(serde_json::to_string(&price).unwrap(), "2.5");
        for wrong in ["0", "-1", "0.0001", "10001", "1e300"] {
            assert!(serde_json::from_str::<UsdPerHour>(wrong).is_err(), "{wrong}");
        }
        assert!(UsdPerHour::try_from(f64::NAN).is_err());
    }
}
