"""The charts' documents, read back by an XML parser: positions against what the axes' own ticks say."""

import math
import re
import subprocess
import sys
import unittest
import xml.etree.ElementTree as tree

SVG = "{http://www.w3.org/2000/svg}"
PROGRAM = None


def draw(name):
    done = subprocess.run([PROGRAM, name], capture_output=True, timeout=30)
    assert done.returncode == 0, (name, done.returncode, done.stderr)
    root = tree.fromstring(done.stdout)
    assert root.tag == SVG + "svg"
    return root.findall(f"{SVG}g[@class='chart']")


def ticks(chart, axis):
    """[(value, pixel)] of an axis."""
    key = {"x": "x", "y": "y"}[axis]
    found = [(float(text.text), float(text.get(key)))
             for text in chart.findall(f"{SVG}text[@class='tick-{axis}']")]
    return [(value, pixel - (4 if axis == "y" else 0)) for value, pixel in found]


def mapping(chart, axis, scale):
    """The pixel of a value, by the outermost two ticks."""
    (low, at_low), *_, (high, at_high) = sorted(ticks(chart, axis))
    return lambda value: at_low + (at_high - at_low) * (
        (scale(value) - scale(low)) / (scale(high) - scale(low)))


def points(series):
    return [(float(c.get("cx")), float(c.get("cy"))) for c in series.iter(SVG + "circle")]


def looks(chart):
    """Circles of the series alone: not those of legend and notes."""
    return [point for series in chart.findall(f"{SVG}g[@class='series']") for point in points(series)]


class Chart(unittest.TestCase):
    XS, RISING = [1, 10, 64, 300, 1000], [0.02, 0.5, 3, 40, 700]
    FALLING = [700, 700, 7, 7, 0.7]
    SCALES = [(float, float), (math.log, float), (math.log, math.log), (float, math.log)]

    def near(self, left, right):
        self.assertEqual(len(left), len(right))
        for one, other in zip(left, right):
            self.assertAlmostEqual(one[0], other[0], delta=0.05)
            self.assertAlmostEqual(one[1], other[1], delta=0.05)

    def test_points_and_lines_lie_where_the_ticks_say(self):
        charts = draw("lines")
        self.assertEqual(len(charts), len(self.SCALES))
        for chart, (x_scale, y_scale) in zip(charts, self.SCALES):
            x, y = mapping(chart, "x", x_scale), mapping(chart, "y", y_scale)
            for value, pixel in ticks(chart, "x"):
                self.assertAlmostEqual(x(value), pixel, delta=0.05)
            for value, pixel in ticks(chart, "y"):
                self.assertAlmostEqual(y(value), pixel, delta=0.05)
            for series, values in zip(chart.findall(f"{SVG}g[@class='series']"),
                                      [self.RISING, self.FALLING]):
                wanted = [(x(at), y(value)) for at, value in zip(self.XS, values)]
                self.near(points(series), wanted)
                path = series.find(f"{SVG}path").get("d")
                self.near([tuple(map(float, pair)) for pair in
                           re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path)], wanted)
                self.assertEqual(path.count("M"), 1)

    def test_axes_run_right_and_up_and_hold_the_data(self):
        for nth, chart in enumerate(draw("lines")):
            self.assertGreaterEqual(len(ticks(chart, "x")), 2)
            self.assertGreaterEqual(len(ticks(chart, "y")), 2)
            for axis, way in ("x", 1), ("y", -1):
                pixels = [pixel for _, pixel in sorted(ticks(chart, axis))]
                self.assertEqual(pixels, sorted(pixels, key=lambda pixel: way * pixel))
            frame = chart.find(f"{SVG}clipPath/{SVG}rect")
            left, top = float(frame.get("x")), float(frame.get("y"))
            self.assertGreaterEqual(top, 460 * nth)
            self.assertLessEqual(top + float(frame.get("height")), 460 * (nth + 1))
            for x, y in looks(chart):
                self.assertTrue(left <= x <= left + float(frame.get("width")))
                self.assertTrue(top <= y <= top + float(frame.get("height")))

    def test_legend_title_and_notes(self):
        chart = draw("lines")[0]
        self.assertEqual([text.text for text in chart.findall(f"{SVG}text[@class='legend']")],
                         ["rising", "falling"])
        samples = chart.findall(f"{SVG}path[@class='sample']")
        drawn = [series.find(f"{SVG}path") for series in chart.findall(f"{SVG}g[@class='series']")]
        for key in "stroke", "stroke-dasharray":
            self.assertEqual([s.get(key) for s in samples], [d.get(key) for d in drawn])
        self.assertNotEqual(drawn[0].get("stroke-dasharray"), drawn[1].get("stroke-dasharray"))
        texts = [text.text for text in chart.findall(f"{SVG}text")]
        self.assertIn("lines", texts)
        self.assertIn("here", texts)
        self.assertNotIn("outside", texts)
        note = chart.find(f"{SVG}circle[@class='note']")
        x, y = mapping(chart, "x", float), mapping(chart, "y", float)
        self.near([(float(note.get("cx")), float(note.get("cy")))], [(x(64), y(3))])
        label, = chart.findall(f"{SVG}text[@class='note-text']")
        self.assertEqual(label.text, "here")
        self.assertLess(float(label.get("y")), y(0))    # a note near the axis stands above it
        self.assertGreater(abs(float(label.get("y")) - y(3)), 8)
        self.assertEqual(chart.find(f".//{SVG}circle/{SVG}title").text, "rising: 1, 0.02")

    def test_bars_stand_on_zero(self):
        chart, = draw("bars")
        names = [text.text for text in chart.findall(f"{SVG}text[@class='tick-x']")]
        self.assertEqual(names, ["a & b", "<c>", "d"])
        at = [float(text.get("x")) for text in chart.findall(f"{SVG}text[@class='tick-x']")]
        y = mapping(chart, "y", float)
        wanted = [[1, 2, 4], [3, -1, 0]]
        for nth, series in enumerate(chart.findall(f"{SVG}g[@class='series']")):
            for middle, value, bar in zip(at, wanted[nth], series.findall(f"{SVG}rect")):
                top, height = float(bar.get("y")), float(bar.get("height"))
                self.assertAlmostEqual(top, min(y(value), y(0)), delta=0.05)
                self.assertAlmostEqual(height, abs(y(value) - y(0)), delta=0.05)
                left, width = float(bar.get("x")), float(bar.get("width"))
                edge = left + width if nth == 0 else left
                self.assertAlmostEqual(edge, middle, delta=0.05)

    def test_texts_are_texts_and_what_is_no_number_breaks_the_line(self):
        chart, = draw("hostile")
        self.assertEqual([text.text for text in chart.findall(f"{SVG}text[@class='legend']")],
                         ["</text><script>alert(1)</script>",
                          "a\ufffd\ufffd[31m\ufffd\ufffd\ufffd\ufffdz'\"&\ufffd"])
        texts = [text.text for text in chart.findall(f"{SVG}text")]
        self.assertIn("]]><!-- ä", texts)
        self.assertIn("&amp;", texts)
        self.assertIsNone(chart.find(f".//{SVG}script"))
        first = chart.find(f"{SVG}g[@class='series']")
        self.assertEqual(len(points(first)), 3)
        self.assertEqual(first.find(f"{SVG}path").get("d").count("M"), 3)

    def test_nothing_to_see_is_drawn_too(self):
        charts = draw("degenerate")
        for nth, chart in enumerate(charts):
            counts = [0, 1 if nth < 3 else 0, 3]
            self.assertEqual(len(looks(chart)), counts[nth % 3])
        text = subprocess.run([PROGRAM, "degenerate"], capture_output=True, check=True).stdout
        self.assertNotIn(b"nan", text)
        self.assertNotIn(b"inf", text)

    def test_limits(self):
        done = subprocess.run([PROGRAM, "too-many"], capture_output=True)
        self.assertEqual(done.returncode, 2)
        self.assertIn(b"33 series", done.stderr)


if __name__ == "__main__":
    PROGRAM = sys.argv.pop(1)
    unittest.main()
