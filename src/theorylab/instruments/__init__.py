"""Measurements of a Problem: plain functions, each registered with its oracle and its source."""

from theorylab.instruments import curvature as curvature
from theorylab.instruments import fisher as fisher
from theorylab.instruments import jacobian as jacobian
