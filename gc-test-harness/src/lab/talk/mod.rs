//! `gclab talk`: the talk's ways to interrupt a loop, measured on the same kernels.

pub mod bell;
pub mod claims;
pub mod figures;
pub mod instructions;
pub mod measure;
pub mod page;
pub mod precision;
mod print;
pub mod scenes;
pub mod slow;
pub mod spinlock;
pub mod stage;
pub mod stops;

pub use figures::{
    Claim, Everywhere, KernelFigures, Precision, SlowDown, Spinlock, Stops, StrategyFigures, Talk,
};
pub use measure::{Options, Storms, measure, storm, storms};
pub use scenes::{Both, Gap, Handler, ManyRun, Scenes, Service, SpinlockScene, SwitchCost};
pub use stage::TalkError;
