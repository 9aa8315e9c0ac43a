"""The course: its syllabus, exercises and projects."""
