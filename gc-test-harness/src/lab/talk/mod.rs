//! `gclab talk`: the talk's ways to interrupt a loop, measured on the same kernels.

pub mod figures;
pub mod page;
pub mod scenes;
pub mod stage;

pub use figures::{
    Claim, KernelFigures, Precision, SlowDown, Spinlock, Stops, StrategyFigures, Talk,
};
pub use scenes::{Both, Gap, Handler, ManyRun, Scenes, Service, SpinlockScene, SwitchCost};
