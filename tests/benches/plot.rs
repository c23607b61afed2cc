//! Plots as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

const SIZE: (u32, u32) = (960, 540);

/// A line of a plot: its name and points.
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// Lines over a logarithmic axis.
pub fn lines(path: &Path, title: &str, x_title: &str, y_title: &str, lines: &[Line]) -> Result<()> {
    let all = || lines.iter().flat_map(|line| &line.points);
    let x_max = all().map(|point| point.0).fold(1.0, f64::max);
    let y_max = all().map(|point| point.1).fold(0.0, f64::max) * 1.1;
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    let failed = |error: &dyn std::fmt::Display| anyhow!("cannot draw {}: {error}", path.display());
    root.fill(&WHITE).map_err(|error| failed(&error))?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(64)
        .build_cartesian_2d((0.8..x_max * 1.5).log_scale(), 0.0..y_max)
        .map_err(|error| failed(&error))?;
    chart
        .configure_mesh()
        .x_desc(x_title)
        .y_desc(y_title)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .draw()
        .map_err(|error| failed(&error))?;
    for (index, line) in lines.iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        chart
            .draw_series(LineSeries::new(line.points.clone(), colour.stroke_width(2)).point_size(4))
            .map_err(|error| failed(&error))?
            .label(line.name.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.4))
        .draw()
        .map_err(|error| failed(&error))?;
    root.present().map_err(|error| failed(&error))
}

/// Lines over time, one of several panels.
pub struct Panel {
    pub y_title: &'static str,
    pub lines: Vec<Line>,
    pub logarithmic: bool,
}

/// Panels on top of each other with one axis of time.
pub fn panels(path: &Path, title: &str, x_title: &str, panels: &[Panel]) -> Result<()> {
    const HEIGHT: u32 = 240;
    const TITLE: u32 = 40;
    const LEGEND: u32 = 120;
    let size = (SIZE.0, TITLE + HEIGHT * panels.len() as u32);
    let root = SVGBackend::new(path, size).into_drawing_area();
    let failed = |error: &dyn std::fmt::Display| anyhow!("cannot draw {}: {error}", path.display());
    root.fill(&WHITE).map_err(|error| failed(&error))?;
    let root = root.titled(title, ("sans-serif", 22)).map_err(|error| failed(&error))?;
    for (area, panel) in root.split_evenly((panels.len(), 1)).iter().zip(panels) {
        let scaled = |value: f64| if panel.logarithmic { value.max(1.0).log10() } else { value };
        let all = || panel.lines.iter().flat_map(|line| &line.points);
        let x_max = all().map(|point| point.0).fold(1.0, f64::max);
        let y_max = all().map(|point| scaled(point.1)).fold(0.0, f64::max) * 1.1;
        let y_min =
            if panel.logarithmic { all().map(|point| scaled(point.1)).fold(y_max / 2.0, f64::min) } else { 0.0 };
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .margin_right(LEGEND)
            .x_label_area_size(36)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..x_max, y_min..y_max)
            .map_err(|error| failed(&error))?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc(x_title)
            .y_desc(panel.y_title)
            .y_labels(6)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| format!("{:.0}", if panel.logarithmic { 10f64.powf(*y) } else { *y }))
            .draw()
            .map_err(|error| failed(&error))?;
        for (index, line) in panel.lines.iter().enumerate() {
            let colour = Palette99::pick(index).to_rgba();
            let points = line.points.iter().map(|(x, y)| (*x, scaled(*y)));
            chart.draw_series(LineSeries::new(points, colour.stroke_width(2))).map_err(|error| failed(&error))?;
            let (x, y) = ((SIZE.0 - LEGEND) as i32, 24 + 20 * index as i32);
            let stroke = PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2));
            area.draw(&stroke).map_err(|error| failed(&error))?;
            let name = Text::new(line.name.clone(), (x + 24, y - 6), ("sans-serif", 13));
            area.draw(&name).map_err(|error| failed(&error))?;
        }
    }
    root.present().map_err(|error| failed(&error))
}

/// A bar of a plot, with its name.
pub struct Column {
    pub name: String,
    pub value: f64,
}

/// Bars side by side.
pub fn columns(path: &Path, title: &str, y_title: &str, columns: &[Column]) -> Result<()> {
    let y_max = columns.iter().map(|column| column.value).fold(0.0, f64::max) * 1.15;
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    let failed = |error: &dyn std::fmt::Display| anyhow!("cannot draw {}: {error}", path.display());
    root.fill(&WHITE).map_err(|error| failed(&error))?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(80)
        .build_cartesian_2d((0..columns.len()).into_segmented(), 0.0..y_max)
        .map_err(|error| failed(&error))?;
    let name = |position: &SegmentValue<usize>| match position {
        SegmentValue::CenterOf(index) => columns.get(*index).map(|column| column.name.clone()).unwrap_or_default(),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .y_desc(y_title)
        .x_labels(columns.len() + 1)
        .x_label_formatter(&name)
        .y_label_formatter(&|y| format!("{y:.0}"))
        .draw()
        .map_err(|error| failed(&error))?;
    let bars = columns.iter().enumerate().map(|(index, column)| {
        let corners = [(SegmentValue::Exact(index), 0.0), (SegmentValue::Exact(index + 1), column.value)];
        let mut bar = Rectangle::new(corners, Palette99::pick(index).filled());
        bar.set_margin(0, 0, 14, 14);
        bar
    });
    chart.draw_series(bars).map_err(|error| failed(&error))?;
    root.present().map_err(|error| failed(&error))
}
