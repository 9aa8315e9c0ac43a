"""Measurements of a Problem: plain functions, each registered with its oracle and its source."""

from theorylab.instruments import bounds as bounds
from theorylab.instruments import certify as certify
from theorylab.instruments import curvature as curvature
from theorylab.instruments import norms as norms
from theorylab.instruments import occam as occam
