# The plot of the README, drawn by doc/bench/draw: reads writers.dat and
# handled.dat in the directory "area", writes "target".  A line of each is a
# contender:
#
#	title, and for each condition median, lowest and highest transactions/s
#	title, then median, lowest and highest events/s

set terminal svg size 1300,440 font 'sans-serif,13' background '#ffffff'
set output target
set multiplot layout 1,2
set style fill solid 0.8 border -1
set grid ytics lc rgb '#dddddd'
set border 3
set tics nomirror
set xtics scale 0 font ',12'
set bmargin 4
set yrange [0:*]
set offsets 0, 0, graph 0.1, 0
set key top left reverse Left
set linetype 1 lc rgb '#4878a8'
set linetype 2 lc rgb '#e0a050'
set style data histograms
set ylabel 'median, lowest and highest round'

set title 'Single-row INSERTs of 32 clients, transactions/s'
set style histogram errorbars gap 1 lw 1
plot area.'/writers.dat' using 2:3:4:xtic(1) title plain, \
	'' using 5:6:7 title slow

set title 'Waiting events, handled/s'
plot area.'/handled.dat' using 2:3:4:xtic(1) notitle, \
	'' using 0:4:(sprintf('%.0f', $2)) with labels offset 0, 0.7 font ',10' notitle
unset multiplot
